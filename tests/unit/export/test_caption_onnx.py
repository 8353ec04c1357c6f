"""The script that captions without torch: its searches, its reading of images, its text, its settings."""

import ast
import copy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from ofa_hf import OFAImageProcessor
from ofa_hf.conversion.write import TOKEN_IDS
from ofa_hf.export import caption_onnx
from ofa_hf.export.caption_onnx import Model, Settings, beam_search, greedy, read_image
from ofa_hf.export.graphs import DecoderGraph, EncoderGraph, state_names
from ofa_hf.processing_ofa import join_pieces


SETTINGS = {
    "greedy": {"num_beams": 1, "max_length": 12},
    "greedy with limits": {"num_beams": 1, "max_length": 9, "min_length": 6, "no_repeat_ngram_size": 2},
    "article": {"num_beams": 5, "max_length": 18, "no_repeat_ngram_size": 3},
    "official": {
        "num_beams": 4,
        "max_length": 10,
        "min_length": 2,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "suppress_tokens": [1],
        "end_at_max_length": True,
    },
    "long ones preferred": {"num_beams": 3, "max_length": 12, "length_penalty": 2.0, "early_stopping": "never"},
    "short ones preferred": {
        "num_beams": 3,
        "max_new_tokens": 10,
        "length_penalty": 0.3,
        "begin_suppress_tokens": [2],
    },
}


@pytest.fixture(scope="module")
def model(tiny_model):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("eager")
    bias = model.decoder.layer_norm.bias
    with torch.no_grad():  # makes the end of a text likelier
        model.encoder.embed_tokens.weight[2] += bias / bias.square().sum()
    return model


@pytest.fixture(scope="module")
def runner(model):
    """What `Model.load` gives, with torch in the place of onnxruntime."""
    encoder, decoder, config = EncoderGraph(model), DecoderGraph(model), model.config
    layers, heads = config.decoder_layers, config.decoder_attention_heads

    def run(graph, names):
        @torch.no_grad()
        def call(inputs):
            outputs = graph(*(torch.from_numpy(value) for value in inputs.values()))
            return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

        return call

    encode = run(encoder, ["encoder_mask", "cross_positions", *state_names("cross", layers)])
    decode = run(decoder, ["scores", *state_names("next", layers)])
    return Model(encode, decode, layers, heads, config.d_model // heads)


def cases() -> list[tuple[list[int], torch.Tensor]]:
    """Prompts and images whose texts end early, and such that never end by themselves."""
    prompts = ([0, 9, 14, 60, 2], [0, 31, 2], [0, 8, 8, 50, 2])
    generator = torch.Generator().manual_seed(0)
    return [(prompt, torch.randn(3, 64, 64, generator=generator)) for prompt in prompts for _ in range(2)]


@pytest.mark.parametrize("name", SETTINGS)
def test_search_gives_the_tokens_and_scores_of_generate(model, runner, name):
    config = GenerationConfig(**SETTINGS[name], **TOKEN_IDS)
    search = greedy if SETTINGS[name]["num_beams"] == 1 else beam_search
    for ids, pixels in cases():
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels[None]}
        expected = model.generate(**inputs, generation_config=config, return_dict_in_generate=True, output_scores=True)
        tokens, score = search(runner.encode(pixels.numpy(), ids), Settings.of(SETTINGS[name]))
        assert tokens == expected.sequences[0].tolist()
        if search is beam_search:
            assert score == pytest.approx(float(expected.sequences_scores[0]), abs=1e-4)


def test_some_of_these_texts_end_early_and_some_at_the_limit(runner):
    """Or the test above would not see how a search stops."""
    settings = Settings.of(SETTINGS["article"])
    lengths = {len(beam_search(runner.encode(pixels.numpy(), ids), settings)[0]) for ids, pixels in cases()}
    assert min(lengths) < settings.max_length == max(lengths)


def test_a_setting_that_the_script_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="repetition_penalty"):
        Settings.of({"repetition_penalty": 1.2})
    with pytest.raises(ValueError, match="do_sample"):
        Settings.of({"do_sample": True})


def test_settings_that_change_nothing_are_accepted():
    quiet = {
        "repetition_penalty": 1.0,
        "do_sample": False,
        "top_k": 50,
        "bad_words_ids": None,
        "_from_model_config": 1,
    }
    assert Settings.of(quiet) == Settings()


def test_new_tokens_count_beside_the_start_token():
    settings = Settings.of({"max_new_tokens": 7, "min_new_tokens": 2})
    assert (settings.max_length, settings.min_length) == (8, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
def test_images_are_read_as_the_image_processor_reads_them(mode, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    image.save(tmp_path / "image.png", exif=exif)
    processor = OFAImageProcessor(size=24)
    expected = processor(str(tmp_path / "image.png"))["pixel_values"][0]
    assert np.array_equal(read_image(tmp_path / "image.png", processor.to_dict()), expected)


@pytest.mark.parametrize(("dtype", "highest"), [("uint16", 65535), ("int32", 70000), ("float32", 1)])
def test_gray_of_more_than_8_bits_is_scaled_as_the_image_processor_does(dtype, highest, tmp_path):
    gray = (np.random.default_rng(0).random((37, 51)) * highest).astype(dtype)
    Image.fromarray(gray).save(tmp_path / "image.tiff")
    processor = OFAImageProcessor(size=24)
    expected = processor(str(tmp_path / "image.tiff"))["pixel_values"][0]
    assert expected.std() > 0.1
    assert np.array_equal(read_image(tmp_path / "image.tiff", processor.to_dict()), expected)


@pytest.mark.parametrize(
    "pieces",
    [
        "红 色 t 恤 , 简 约 风",
        "iphone 13 pro ##max 手 机 壳 3 . 5 mm",
        "hello , world ! 好 a - b 1 , 000",
        "<s> 红 [UNK] 裙 <bin_3> </s> <pad>",
    ],
)
def test_text_is_joined_as_the_processor_joins_it(pieces):
    pieces = pieces.split()
    assert caption_onnx.join_pieces(pieces) == join_pieces(
        piece for piece in pieces if piece not in caption_onnx.UNSPOKEN
    )


def test_the_script_needs_no_torch():
    with open(caption_onnx.__file__, encoding="utf-8") as file:
        nodes = list(ast.walk(ast.parse(file.read())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    allowed = {"numpy", "PIL", "onnxruntime", "tokenizers"} | set(sys.stdlib_module_names)
    assert {name.partition(".")[0] for name in names} <= allowed
