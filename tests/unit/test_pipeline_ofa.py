import base64
import io
import multiprocessing
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import GenerationConfig, ImageTextToTextPipeline
from transformers.pipelines.pt_utils import KeyDataset

from ofa_hf import (
    OFAClassificationPipeline,
    OFAConfig,
    OFAForConditionalGeneration,
    OFAImageProcessor,
    OFAImageToTextPipeline,
    OFAObjectDetectionPipeline,
    OFAProcessor,
    OFAQuestionAnsweringPipeline,
    OFASummarizationPipeline,
    OFATextClassificationPipeline,
)
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.image_loading_ofa import ImageError


PIECES = ["[PAD]", "[UNK]", "<", ">", "?", "，", *"图片描述了什么内容一只猫红色的裙子蓝"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    tokenizer = build_tokenizer(path)
    torch.manual_seed(3)
    config = OFAConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        resnet_type="resnet18",
    )
    model = OFAForConditionalGeneration(config).eval()
    with torch.no_grad():  # initial weights are too small to tell one image from another
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(12 if "embed_tokens" in name or "proj" in name else 1)
    settings = model.generation_config
    settings.num_beams, settings.max_length, settings.no_repeat_ngram_size = 3, 8, 3
    return OFAImageToTextPipeline(model=model, processor=OFAProcessor(OFAImageProcessor(size=64), tokenizer))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    for index, size in enumerate([(40, 60), (90, 30), (64, 64), (20, 20), (33, 77)]):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.NEAREST).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(5)]


def test_every_kind_of_input_gives_the_same_captions(captioner, files):
    one = captioner(files[0])
    assert list(one[0]) == ["generated_text"]
    data = open(files[0], "rb").read()  # noqa: SIM115
    for source in (Image.open(files[0]), data, io.BytesIO(data), base64.b64encode(data).decode(), {"image": files[0]}):
        assert captioner(source) == one
    assert captioner(images=files[0]) == one
    each = [captioner(file) for file in files]
    assert captioner(files, batch_size=2) == captioner(tuple(files)) == each
    assert list(captioner((file for file in files), batch_size=3)) == each
    assert list(captioner(iter(files))) == each
    rows = Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())
    assert list(captioner(rows, batch_size=2)) == list(captioner(KeyDataset(rows, "image"), batch_size=2)) == each
    undecoded = rows.cast_column("image", ImageFeature(decode=False))
    assert list(captioner(undecoded)) == each
    assert captioner([]) == []


def test_a_photo_is_turned_upright_once(captioner, files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.open(files[1]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif.tobytes())
    upright = captioner(files[1], return_scores=True)
    assert captioner(str(tmp_path / "photo.png"), return_scores=True) == upright
    lying = captioner(Image.open(files[1]).transpose(Image.Transpose.ROTATE_90), return_scores=True)
    assert lying != upright


def test_several_captions_of_several_images_stay_with_their_image(captioner, files):
    alone = [captioner(file, num_return_sequences=3) for file in files]
    assert len({str(rows) for rows in alone}) > 1  # the images do differ
    together = captioner(files, num_return_sequences=3, batch_size=4)
    for one, other in zip(alone, together, strict=True):
        assert [row["generated_text"] for row in one] == [row["generated_text"] for row in other]
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-4)
        assert len(one) == 3


def test_prompts_of_different_length_share_a_batch(captioner, files):
    rows = [{"image": files[0], "text": "猫"}, {"image": files[1], "text": "图片描述了什么颜色的裙子?"}, files[2]]
    assert captioner(rows, batch_size=3) == [captioner(row) for row in rows]
    assert captioner(files[0], prompt="猫") == captioner(rows[0])
    with pytest.raises(ValueError, match="must be one string"):
        captioner({"image": files[0], "text": ["猫", "裙子"]})


@pytest.mark.parametrize("settings", [{}, {"num_beams": 1}, {"length_penalty": 2.0}, {"repetition_penalty": 1.5}])
def test_scores_are_the_mean_log_probability_of_the_tokens(captioner, files, settings):
    inputs = captioner.processor(load(files[0]))
    with torch.no_grad():
        sequence = captioner.model.generate(**inputs, **settings)
        logits = captioner.model(**inputs, decoder_input_ids=sequence[:, :-1]).logits.log_softmax(-1)
    tokens = sequence[0, 1:]
    length = (tokens == 2).nonzero()[0, 0] + 1 if (tokens == 2).any() else len(tokens)
    expected = logits[0].gather(1, tokens[:, None])[:length].mean()
    score = captioner(files[0], return_scores=True, **settings)[0]["score"]
    assert score == pytest.approx(expected.item(), abs=1e-5)
    assert "score" not in captioner(files[0], num_return_sequences=2, num_beams=2, return_scores=False)[0]


def test_scores_that_the_search_returns_need_no_second_pass(captioner, files, monkeypatch):
    expected = captioner(files[0], num_return_sequences=3)
    monkeypatch.setattr(captioner.model, "sequence_scores", lambda *_, **__: pytest.fail("a second pass"))
    found = captioner(files[0], num_return_sequences=3, output_scores=True)
    assert [row["generated_text"] for row in found] == [row["generated_text"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    with pytest.raises(BaseException, match="a second pass"):
        captioner(files[0], num_return_sequences=3, output_scores=True, length_penalty=0.5)


def load(file):
    with Image.open(file) as image:
        return image.convert("RGB")


def test_every_keyword_of_generate_gets_through(captioner, files):
    short = captioner(files[0], max_new_tokens=2)[0]["generated_text"]
    assert captioner(files[0])[0]["generated_text"] != short
    assert captioner(files[0], generate_kwargs={"max_new_tokens": 2})[0]["generated_text"] == short
    greedy = captioner(files[0], num_beams=1, do_sample=False)
    assert greedy == captioner(files[0], generate_kwargs={"num_beams": 1})
    set_once = OFAImageToTextPipeline(model=captioner.model, processor=captioner.processor, num_beams=1)
    assert set_once(files[0]) == greedy


def test_a_broken_image_in_a_list_is_named(captioner, files, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"broken\.jpg is not an image"):
        captioner([files[0], str(tmp_path / "broken.jpg")], batch_size=2)


def test_a_text_without_an_image_is_refused(captioner):
    with pytest.raises(ValueError, match="'caption' needs an image but got only the text '一只猫'"):
        captioner({"text": "一只猫"})


def test_another_task_of_the_checkpoint_is_asked_by_name(captioner, files):
    tasks = {
        "caption": {},
        "color": {"prompt": "{product}什么颜色?", "generation": {"max_new_tokens": 2}},
        "shorten": {"prompt": "{text}?", "needs_image": False},
    }
    processor = OFAProcessor(captioner.image_processor, captioner.tokenizer, tasks)
    pipe = OFAImageToTextPipeline(model=captioner.model, processor=processor)
    questions = [{"image": file, "text": "裙子什么颜色?"} for file in files]
    expected = captioner(questions, max_new_tokens=2, return_scores=True)
    assert expected != captioner(files, max_new_tokens=2, return_scores=True)
    asked = {"task": "color", "return_scores": True}
    assert pipe([{"image": file, "text": "裙子"} for file in files], **asked) == expected
    assert pipe(files, prompt="裙子", **asked) == pipe(files, prompt={"product": "裙子"}, **asked) == expected
    assert pipe(files, prompt="裙子", max_new_tokens=5, **asked) != expected  # a call's own setting wins
    whole = GenerationConfig.from_model_config(captioner.model.config)
    whole.max_length, whole.num_beams = 7, 3
    own = pipe(files[0], prompt="裙子", generation_config=whole, **asked)  # nothing of the task's is added to it
    assert own == captioner(questions[0], generation_config=whole, return_scores=True) != expected[0]
    always = OFAImageToTextPipeline(model=captioner.model, processor=processor, task="color")
    assert always(files, prompt="裙子", return_scores=True) == expected
    assert always(files, task="caption") == captioner(files)
    with pytest.raises(ValueError, match="no task 'ocr'. Accepted: caption, color, shorten"):
        OFAImageToTextPipeline(model=captioner.model, processor=processor, task="ocr")
    assert pipe({"text": "裙子"}, task="shorten")[0].keys() == {"generated_text"}
    assert pipe(files) == captioner(files)
    with pytest.raises(ValueError, match="no task 'ocr'. Accepted: caption, color, shorten"):
        pipe(files[0], task="ocr")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start by fork")
def test_a_process_forked_from_one_that_captioned_with_several_threads_captions_too(captioner, files):
    def caption() -> str:
        return captioner(str(files[0]))[0]["generated_text"]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = caption()
        process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(caption() != expected))
        process.start()
        process.join(60)
        process.kill()
        assert process.exitcode == 0
        assert torch.get_num_threads() == 2  # here nothing changed
    finally:
        torch.set_num_threads(threads)


def test_an_opened_image_that_breaks_off_is_captioned_from_what_is_there(captioner, files):
    data = open(files[1], "rb").read()  # noqa: SIM115
    whole = captioner(files[1])
    broken = Image.open(io.BytesIO(data[: len(data) * 3 // 4]))  # decoded when somebody looks at its pixels
    assert captioner(broken)[0].keys() == whole[0].keys()


# ------------------------------------------------------------------------- transformers' own pipelines


@pytest.fixture(scope="module")
def stock(captioner):
    """What `pipeline("image-text-to-text")` is on both versions, and "image-to-text" of a model object on 5."""
    return ImageTextToTextPipeline(model=captioner.model, processor=captioner.processor)


def test_the_stock_pipeline_answers_without_repeating_the_prompt(captioner, stock, files):
    for file in files[:2]:
        expected = captioner(file, prompt="裙子什么颜色?", max_new_tokens=5)[0]["generated_text"]
        asked = {"images": file, "text": "裙子什么颜色?", "generate_kwargs": {"max_new_tokens": 5}}
        for answer in (stock(**asked), stock(**asked, return_full_text=False)):
            assert answer[0]["generated_text"] == expected
            assert answer[0]["input_text"] == "裙子什么颜色?"


def test_the_stock_pipeline_keeps_an_answer_that_begins_like_its_prompt(captioner, stock, files, monkeypatch):
    ids = captioner.processor(text=["红裙子"])["input_ids"]
    monkeypatch.setattr(captioner.model, "generate", lambda **_: ids)
    for prompt in ("红", "\u200b"):  # the second decodes to nothing
        for full in (True, False):
            answer = stock(images=files[0], text=prompt, return_full_text=full)[0]
            assert answer["generated_text"] == "红裙子"
    assert answer["generated_text"].find("裙") == 1


def test_the_stock_pipeline_takes_chat_messages(captioner, stock, files):
    expected = captioner(files[0], max_new_tokens=5)[0]["generated_text"]
    for content in (
        [{"type": "image", "path": files[0]}],
        [{"type": "image", "path": files[0]}, {"type": "text", "text": captioner.processor.prompt_for()}],
    ):
        messages = [{"role": "user", "content": content}]
        answer = stock(text=messages, generate_kwargs={"max_new_tokens": 5})[0]["generated_text"]
        assert answer[-1] == {"role": "assistant", "content": expected}


def test_the_stock_pipeline_refuses_a_text_without_an_image(stock, files):
    for call in (
        lambda: stock(text="一只猫"),
        lambda: stock(files[0]),  # an image's path, which that pipeline takes for a text
        lambda: stock(text=[{"role": "user", "content": "一只猫"}]),
    ):
        with pytest.raises(ValueError, match=r"needs an image but got only the text .*OFAImageToTextPipeline"):
            call()


@pytest.fixture(scope="module")
def locator(captioner):
    parts = captioner.processor.image_processor, captioner.processor.tokenizer
    return OFAObjectDetectionPipeline(model=captioner.model, processor=OFAProcessor(*parts, tasks=["grounding"]))


def test_phrases_are_located_in_pixels_of_the_original_image(locator, files, monkeypatch):
    labels = ["一只猫", "红色的裙子", "蓝"]
    alone = [locator(files[1], candidate_labels=[label])[0] for label in labels]
    calls, embed = [], locator.model.embed_image_cells
    monkeypatch.setattr(locator.model, "embed_image_cells", lambda pixels: calls.append(len(pixels)) or embed(pixels))
    found = locator(files[1], candidate_labels=labels)
    assert calls == [1]  # one pass for all phrases
    assert [one["label"] for one in found] == [one["label"] for one in sorted(alone, key=lambda one: -one["score"])]
    for one in found:
        expected = alone[labels.index(one["label"])]
        assert one["box"] == expected["box"]
        assert one["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert 0 < one["score"] < 1
        assert list(one["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert locator(files[1], candidate_labels="一只猫, 红色的裙子,蓝") == found
    assert locator([files[1], {"image": files[0], "candidate_labels": ["蓝"]}], candidate_labels=labels)[0] == found


def test_a_threshold_leaves_out_what_is_not_there(locator, files):
    found = locator(files[0], candidate_labels=["一只猫", "蓝"])
    assert locator(files[0], candidate_labels=["一只猫", "蓝"], threshold=found[1]["score"] + 1e-4) == found[:1]
    assert locator(files[0], candidate_labels=["一只猫", "蓝"], top_k=1) == found[:1]
    assert locator(files[0], candidate_labels=["一只猫", "蓝"], official=True, max_length=4) == []  # no room for a box
    strict = OFAObjectDetectionPipeline(model=locator.model, processor=locator.processor, threshold=1.0)
    assert strict(files[0], candidate_labels=["一只猫"]) == []


def test_what_cannot_be_located_is_refused(captioner, locator, files):
    for labels in (None, [], ["猫", ""], [3]):
        with pytest.raises(ValueError, match="candidate_labels must be texts"):
            locator(files[0], candidate_labels=labels)
    with pytest.raises(ValueError, match="got no image"):
        locator(candidate_labels=["猫"])
    other = OFAObjectDetectionPipeline(model=captioner.model, processor=captioner.processor)
    with pytest.raises(ValueError, match="no task for the pipeline 'zero-shot-object-detection'. Its tasks: caption"):
        other(files[0], candidate_labels=["猫"])


def test_the_caption_pipeline_gives_boxes_of_a_task_that_has_them(captioner, locator, files):
    pipe = OFAImageToTextPipeline(model=locator.model, processor=locator.processor, task="grounding")
    (answer,) = pipe({"image": files[1], "text": "一只猫"}, return_scores=True)
    (expected,) = locator(files[1], candidate_labels=["一只猫"])
    assert answer["box"] == expected["box"]
    assert answer["score"] == pytest.approx(np.log(expected["score"]), abs=1e-5)


def pipe_of(kind, captioner, **tasks):
    parts = captioner.processor.image_processor, captioner.processor.tokenizer
    return kind(model=captioner.model, processor=OFAProcessor(*parts, tasks=tasks))


@pytest.fixture(scope="module")
def asker(captioner):
    return pipe_of(OFAQuestionAnsweringPipeline, captioner, vqa={})


def test_questions_are_answered_freely(asker, files):
    best = asker(files[0], question="什么颜色", max_new_tokens=6)
    assert list(best[0]) == ["score", "answer"]
    several = asker(image=files[0], question="什么颜色", top_k=3, max_new_tokens=6)
    assert several[0]["answer"] == best[0]["answer"]
    assert len(several) == 3
    assert [one["score"] for one in several] == sorted((one["score"] for one in several), reverse=True)
    rows = [{"image": files[1], "question": "一只猫?"}, {"image": files[0], "question": "什么颜色"}]
    assert asker(rows, max_new_tokens=6)[1] == best
    inputs = asker.processor(load(files[0]), text="什么颜色")
    start = inputs["decoder_input_ids"].shape[1]
    with torch.no_grad():
        settings = {**asker.processor.generation_kwargs(), "max_new_tokens": 6}
        ids = asker.model.generate(**inputs, **settings)[:, start:]
    assert asker.processor.post_process(ids) == [best[0]["answer"]]


def test_a_tasks_own_limit_goes_before_the_checkpoints_without_a_warning(asker, files, caplog):
    inputs = asker.processor(files[0], text="什么颜色")
    with torch.no_grad():
        ids = asker.model.generate(**inputs, num_beams=1, max_new_tokens=3, min_new_tokens=3)
    assert ids.shape[1] == inputs["decoder_input_ids"].shape[1] + 3
    assert "seem to have been set" not in caplog.text


def test_questions_of_different_length_share_a_batch(asker, files):
    rows = [
        {"image": files[0], "text": "什么颜色"},
        {"image": files[1], "text": "猫"},
        {"image": files[2], "text": "图片描述了什么"},
    ]
    pipe = OFAImageToTextPipeline(model=asker.model, processor=asker.processor, task="vqa")
    settings = {"max_new_tokens": 6, "return_scores": True}
    alone, together = [pipe(row, **settings) for row in rows], pipe(rows, batch_size=3, **settings)
    for (one,), (other,) in zip(alone, together, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_answers_of_a_list_have_probabilities(asker, files):
    answers = ["红色", "蓝", "一只猫"]
    found = asker(files[0], question="什么颜色", candidate_answers=answers)
    assert {one["answer"] for one in found} == set(answers)
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)
    assert asker(files[0], question="什么颜色", candidate_answers=answers, top_k=1) == found[:1]
    for question in (None, " ", 3):
        with pytest.raises(ValueError, match="question must be a text"):
            asker(files[0], question=question)
    with pytest.raises(ValueError, match="are the same to the model"):
        asker(files[0], question="什么颜色", candidate_answers=["蓝", "蓝"])


def test_images_are_classified_with_one_pass_of_the_encoder(captioner, files, monkeypatch):
    pipe = pipe_of(OFAClassificationPipeline, captioner, classification={"prompt": "图片描述了什么?"})
    calls, encode = [], pipe.model.encode
    monkeypatch.setattr(pipe.model, "encode", lambda **inputs: calls.append(1) or encode(**inputs))
    found = pipe(files[0], candidate_labels=["红色", "蓝", "一只猫", "一只"])
    assert calls == [1]
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert pipe([files[1], files[0]], candidate_labels="红色,蓝,一只猫, 一只", top_k=2)[1] == found[:2]
    plain = pipe.processor.image_processor(load(files[0]))["pixel_values"]
    assert not torch.equal(pipe.processor(load(files[0]))["pixel_values"], torch.tensor(plain))  # ImageNet's mean
    with pytest.raises(ValueError, match="candidate_labels must be texts"):
        pipe(files[0])


def test_a_task_brings_its_own_answers(captioner, files):
    settings = {"prompt": "{hypothesis}?", "choices": ["红色", "蓝"]}
    pipe = pipe_of(OFAQuestionAnsweringPipeline, captioner, entailment=settings)
    assert {one["answer"] for one in pipe(files[0], question="一只猫")} == {"红色", "蓝"}


def test_articles_are_summarized_without_an_image(captioner):
    pipe = pipe_of(OFASummarizationPipeline, captioner, summarization={})
    (one,) = pipe("一只红色的猫", max_length=6)
    assert list(one) == ["summary_text"]
    several = pipe(["裙子", "一只红色的猫"], max_length=6)
    assert several[1] == one
    assert len(several) == 2
    inputs = pipe.processor(text="一只红色的猫", task="summarization")
    with torch.no_grad():
        ids = pipe.model.generate(**inputs, **{**pipe.processor.generation_kwargs(), "max_length": 6})
    assert pipe.processor.post_process(ids) == [one["summary_text"]]
    for documents in (None, [], ["裙子", 3], " "):
        with pytest.raises(ValueError, match="needs articles"):
            pipe(documents)


def test_sentences_are_classified(captioner):
    settings = {"prompt": "{sentence1}是{sentence2}?", "choices": ["红色", "蓝"]}
    pipe = pipe_of(OFATextClassificationPipeline, captioner, rte=settings)
    row = {"sentence1": "一只猫", "sentence2": "裙子"}
    found = pipe(row)
    assert {one["label"] for one in found} == {"红色", "蓝"}
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)
    assert pipe([row, row], top_k=1) == [found[:1]] * 2
    assert {one["label"] for one in pipe(row, candidate_labels=["猫", "蓝"])} == {"猫", "蓝"}
    with pytest.raises(ValueError, match="takes a dict with sentence1, sentence2"):
        pipe("一只猫")
    with pytest.raises(ValueError, match="got no input"):
        pipe()


def test_an_answer_of_a_list_can_be_searched_as_the_original_does(asker, files):
    answers = ["红色", "红色的裙子", "蓝"]
    scored = asker(files[0], question="什么颜色", candidate_answers=answers)
    found = asker(files[0], question="什么颜色", candidate_answers=answers, search=True, top_k=3, num_beams=20)
    assert [one["answer"] for one in found[:3]] == sorted(answers, key=[one["answer"] for one in found].index)
    best = asker(files[0], question="什么颜色", candidate_answers=answers, search=True, num_beams=20)
    assert [one["answer"] for one in best] == [scored[0]["answer"]]


def test_calls_as_transformers_own_pipelines_take_them(captioner, asker, files):
    alone = [asker(files[0], question=question, max_new_tokens=4) for question in ("什么颜色", "一只猫")]
    assert asker(image=files[0], question=["什么颜色", "一只猫"], max_new_tokens=4) == alone
    assert asker([files[1], files[0]], ["什么颜色", "一只猫"], max_new_tokens=4)[2:] == alone
    seen = asker.preprocess({"image": files[0], "text": {"question": "猫", "objects": ["裙子", "猫"]}, "choices": []})
    assert asker.processor.decode(seen["input_ids"][0]).startswith("猫?")
    assert seen["input_ids"].shape[1] > asker.processor(files[0], text="猫")["input_ids"].shape[1] + 2
    pipe = pipe_of(OFAClassificationPipeline, captioner, classification={"prompt": "图片描述了什么?"})
    plain = pipe(files[0], candidate_labels=["红色", "蓝"])
    assert pipe(files[0], candidate_labels=["红色", "蓝"], hypothesis_template="一只{}") == plain
    pipe = pipe_of(OFASummarizationPipeline, captioner, summarization={})
    assert pipe("裙子", max_length=6, truncation=True) == pipe("裙子", max_length=6)
    settings = {"prompt": "{sentence1}是{sentence2}?", "choices": ["红色", "蓝"]}
    pipe = pipe_of(OFATextClassificationPipeline, captioner, rte=settings)
    row = {"sentence1": "一只猫", "sentence2": "裙子"}
    assert pipe({"text": "一只猫", "text_pair": "裙子"}, truncation=True) == pipe(row)


def test_an_image_where_a_question_belongs_is_refused(asker, locator, files):
    with pytest.raises(ValueError, match="is the name of an image file"):
        asker(files[0], question=files[1])
    with pytest.raises(ValueError, match="is the name of an image file"):
        locator(files[0], candidate_labels=["photo.JPG"])
    other = pipe_of(OFAQuestionAnsweringPipeline, asker, color={"prompt": "什么颜色?", "pipeline": PIPE})
    with pytest.raises(ValueError, match="takes no text, so it answers no question"):
        other(files[0], question="猫")


PIPE = OFAQuestionAnsweringPipeline.pipeline_name


def test_places_are_chosen_among_all_words_if_asked(locator, files, monkeypatch):
    used, search = [], locator.model.generate
    monkeypatch.setattr(locator.model, "generate", lambda **given: used.append(given) or search(**given))
    (found,) = locator(files[0], candidate_labels=["一只猫"], zero_shot=True)
    assert list(found["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert [one.renormalize for one in used[0]["logits_processor"]] == [False]


def test_official_texts_are_those_that_the_scripts_score(captioner, files, monkeypatch):
    ids = captioner.processor.tokenizer("一只猫,蓝?", add_special_tokens=False).input_ids
    row = torch.tensor([[0, *ids, 2]])
    assert captioner.processor.post_process(row) == ["一只猫?蓝?".replace("猫?", "猫")]
    assert captioner.processor.post_process(row, official=True) == ["一只猫蓝"]
    assert "?" not in captioner(files[0], official=True)[0]["generated_text"]


def test_a_task_with_a_list_of_answers_gives_one_of_them(captioner, files):
    color = {"prompt": "什么颜色?", "answer": "choice", "choices": ["红色", "蓝", "一只猫"]}
    pipe = pipe_of(OFAImageToTextPipeline, captioner, color=color)
    alone = [pipe(file, return_scores=True)[0] for file in files[:3]]
    together = pipe(files[:3], batch_size=3, return_scores=True)
    for one, (other,) in zip(alone, together, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    every = pipe(files[0], num_return_sequences=5)
    assert every[0]["generated_text"] == alone[0]["generated_text"]
    assert {one["generated_text"] for one in every} == set(color["choices"])
    assert sum(np.exp(one["score"]) for one in every) == pytest.approx(1, abs=1e-5)
