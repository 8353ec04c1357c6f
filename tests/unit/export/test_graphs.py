"""The two graphs as torch modules, before they are written: step by step they say what the model says."""

import copy

import pytest
import torch

from ofa_hf.export.graphs import DecoderGraph, EncoderGraph


@pytest.fixture(scope="module")
def model(tiny_model):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def encoder_inputs(tiny_batch):
    """Prompts of different length, so some are padded."""
    input_ids = tiny_batch["input_ids"]
    return {
        "pixel_values": tiny_batch["pixel_values"],
        "input_ids": input_ids,
        "attention_mask": (input_ids != 1).long(),
    }


@torch.no_grad()
def test_decoding_step_by_step_gives_the_logits_of_decoding_at_once(model, encoder_inputs):
    rows = torch.randint(4, 120, (6, 7))  # two texts per image
    expected = model(**encoder_inputs, decoder_input_ids=rows).logits
    image = EncoderGraph(model)(**encoder_inputs)
    decoder, cache = DecoderGraph(model), [torch.zeros(6, 2, 0, 16)] * 6
    for step in range(7):
        scores, *cache = decoder(rows[:, step : step + 1], *image, *cache)
        torch.testing.assert_close(scores, expected[:, step], rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_tokens_at_once_go_on_from_any_cache(model, encoder_inputs):
    rows = torch.randint(4, 120, (3, 7))
    expected = model(**encoder_inputs, decoder_input_ids=rows).logits[:, -1]
    image, decoder = EncoderGraph(model)(**encoder_inputs), DecoderGraph(model)
    _, *cache = decoder(rows[:, :3], *image, *[torch.zeros(3, 2, 0, 16)] * 6)
    scores, *_ = decoder(rows[:, 3:], *image, *cache)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
