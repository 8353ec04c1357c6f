"""The script that answers without torch: boxes, choices, questions before answers, and texts as they are cleaned."""

import json

import numpy as np
import pytest
import small_checkpoints
import torch
from PIL import Image

from ofa_hf import OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.errors import UserError
from ofa_hf.export import answer_onnx, caption_onnx
from ofa_hf.export.answer_onnx import Answerer, clean
from ofa_hf.export.caption_onnx import Model
from ofa_hf.export.graphs import DecoderGraph, EncoderGraph, state_names
from ofa_hf.export.onnx import tasks_with_image, write_scripts
from ofa_hf.tasks_ofa import TASKS


TASKS_HERE = {
    "caption": {},
    "grounding": {},
    "ocr": {},
    "vqa": {"generation": {"num_beams": 3, "max_new_tokens": 8, "length_penalty": 0.0, "early_stopping": True}},
    "region": {"prompt": "图片的区域是什么?{box}"},
    "color": {"prompt": "上的裙子是什么色?", "answer": "choice", "choices": ["红色", "红", "图片"]},
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A tiny model of several tasks, and the folder that the script reads, with torch in the place of onnxruntime."""
    folder = tmp_path_factory.mktemp("onnx")
    config = small_checkpoints.make_config()
    config.max_position_embeddings = 120
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    settings = {"num_beams": 3, "max_length": 9, "early_stopping": True, "suppress_tokens": [1]}
    model.generation_config.update(**settings)
    tokenizer = build_tokenizer(small_checkpoints.write_vocabulary(folder / "vocab.txt"))
    processor = OFAProcessor(OFAImageProcessor(size=96), tokenizer, tasks=TASKS_HERE)
    processor.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    rows, _ = tasks_with_image(processor)
    (folder / "tasks.json").write_text(json.dumps({"default": "caption", "tasks": rows}))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return model, processor, folder


@pytest.fixture
def answerer(network, monkeypatch):
    model, _, folder = network
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads

    def run(graph, names):
        @torch.no_grad()
        def call(inputs):
            outputs = graph(*(torch.from_numpy(value) for value in inputs.values()))
            return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

        return call

    encode = run(EncoderGraph(model), ["encoder_mask", "cross_positions", *state_names("cross", layers)])
    decode = run(DecoderGraph(model), ["scores", *state_names("next", layers)])
    runner = Model(encode, decode, layers, heads, model.config.d_model // heads)
    monkeypatch.setattr(caption_onnx.Model, "load", classmethod(lambda cls, folder: runner))
    return Answerer(folder)


TEXTS = {"grounding": "红色裙子", "vqa": "什么色", "region": (5, 5, 30, 30)}


@pytest.mark.parametrize("name", ["caption", "grounding", "ocr", "vqa", "region"])
def test_answers_are_those_of_the_model(network, answerer, name):
    model, processor, folder = network
    image, text = Image.open(folder / "image.png"), TEXTS.get(name)
    values = {"box": text} if name == "region" else text
    inputs = processor(image, text=values, task=name)
    with torch.no_grad():
        ids = model.generate(**inputs, **processor.generation_kwargs(name))
    start = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
    expected = processor.post_process(torch.cat([ids[:, :1], ids[:, start:]], 1), name, [image.size])[0]
    found = answerer(folder / "image.png", name, ",".join(map(str, text)) if name == "region" else text)
    assert found["tokens"] == ids[0].tolist()
    if name == "grounding":
        assert found["answer"] == pytest.approx(expected, rel=1e-6)
    else:
        assert found["answer"] == expected


def test_answers_of_a_list_have_the_models_probabilities(network, answerer):
    model, processor, folder = network
    for task, text, choices in (("color", None, TASKS_HERE["color"]["choices"]), ("vqa", "什么色", ["红", "裙子"])):
        inputs = processor(Image.open(folder / "image.png"), text=text, task=task)
        with torch.no_grad():
            scores = model.score_choices(processor.encode_choices(choices), **inputs)[0].exp().tolist()
        found = answerer(folder / "image.png", task, text, () if task == "color" else choices)["answers"]
        assert [found[choice] for choice in choices] == pytest.approx(scores, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_what_has_no_answer_is_refused(answerer, network):
    image = network[2] / "image.png"
    with pytest.raises(ValueError, match="no task 'draw'. Accepted: caption, grounding"):
        answerer(image, "draw")
    with pytest.raises(ValueError, match="takes a text: --text"):
        answerer(image, "vqa")
    with pytest.raises(ValueError, match="takes no text"):
        answerer(image, "caption", "猫")


@pytest.mark.parametrize("text", ["What COLOR  is-this", "!a/b <person>", "word " * 99, "好?", ""])
def test_texts_are_cleaned_as_in_the_package(text):
    assert clean(text, "phrase") == TASKS["grounding"].prompt("zh", text=text).split('"')[1][1:-1]
    assert clean(text, "question") == TASKS["vqa"].prompt("zh", question=text)
    assert clean(text, "") == text


def test_tasks_without_an_image_are_left_out_or_refused_by_name(network):
    parts = network[1].image_processor, network[1].tokenizer
    rows, left_out = tasks_with_image(OFAProcessor(*parts, tasks=["caption", "summarization"]))
    assert (list(rows), left_out) == (["caption"], ["summarization"])
    with pytest.raises(UserError, match="The task summarization cannot be exported: it reads no image"):
        tasks_with_image(OFAProcessor(*parts, tasks=["summarization"]))


def test_the_written_script_imports_its_neighbour_and_no_package(tmp_path):
    write_scripts(tmp_path)
    text = (tmp_path / "answer.py").read_text(encoding="utf-8")
    assert "ofa_hf" not in text
    assert "from caption import Captioner" in text
    assert (tmp_path / "caption.py").is_file()
    assert answer_onnx.PLACES == 1000
