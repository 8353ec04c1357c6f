"""Steps of few operations give what the layers give, whatever a search does with its texts."""

import copy
import dataclasses
import functools

import pytest
import torch

from ofa_hf import fast_decoding_ofa as decoding
from ofa_hf import fast_ofa as kernels


pytestmark = pytest.mark.skipif(not kernels.onednn_works(), reason="torch has no oneDNN operators here")
WAYS = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"num_beams": 1, "do_sample": True, "num_return_sequences": 3, "top_k": 5},
    "sampled beams": {"num_beams": 3, "do_sample": True},
}
START, PAD = 0, 1


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Three images with prompts of different lengths."""
    torch.manual_seed(0)
    prompts = torch.tensor([[START, 9, 14, 60, 77, 2], [START, 31, 2, PAD, PAD, PAD], [START, 8, 8, 50, 2, PAD]])
    return {"input_ids": prompts, "pixel_values": torch.randn(3, 3, 64, 64)}


def generate(model, inputs: dict, **settings):
    torch.manual_seed(3)
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "return_dict_in_generate": True, **settings}
    return model.generate(**inputs, output_logits=True, do_sample=settings.pop("do_sample", False), **settings)


def by_layers(model):
    """The same model without the steps."""
    plain = copy.deepcopy(model)
    plain._decoding_weights.make_cache = lambda model, *settings: None
    return plain


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [1, 3])  # all weights packed, some weights packed
def test_steps_give_the_texts_and_scores_of_the_layers(tiny_model, inputs, way, number, monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", 3)  # so that it is doubled several times
    inputs = {name: value[:number] for name, value in inputs.items()}
    stepped = generate(tiny_model, inputs, **WAYS[way])
    expected = generate(by_layers(tiny_model), inputs, **WAYS[way])
    assert isinstance(stepped.past_key_values, decoding.StepCache)
    assert not isinstance(expected.past_key_values, decoding.StepCache)
    assert torch.equal(stepped.sequences, expected.sequences)
    for one, other in zip(stepped.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_begun_by_the_caller_is_gone_on_with(tiny_model, inputs, num_beams):
    begun = {**inputs, "decoder_input_ids": torch.tensor([[START, 5, 9], [START, 40, 41], [START, 7, 7]])}
    stepped = generate(tiny_model, begun, num_beams=num_beams)
    expected = generate(by_layers(tiny_model), begun, num_beams=num_beams)
    assert isinstance(stepped.past_key_values, decoding.StepCache)
    assert torch.equal(stepped.sequences, expected.sequences)


def test_half_precision_stays_as_near_to_float32_as_the_layers_do(tiny_model, inputs):
    half = copy.deepcopy(tiny_model).bfloat16()
    halved = {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}
    exact = generate(tiny_model, inputs, max_new_tokens=1, min_new_tokens=1).logits[0]
    errors = []
    for model in (half, by_layers(half)):
        found = generate(model, halved, max_new_tokens=1, min_new_tokens=1)
        errors.append((found.logits[0].float() - exact).abs().max().item())
    assert 0 < errors[0] < 2 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [1, 3])
def test_a_processor_without_half_precision_takes_its_steps_in_float32(tiny_model, inputs, slow_halves, dtype, number):
    half = copy.deepcopy(tiny_model).to(dtype)
    inputs = {name: value[:number] for name, value in inputs.items()}
    encoded = half.encode(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"].to(dtype))
    rounded = copy.deepcopy(half).float()
    as_float32 = dataclasses.replace(
        encoded,
        last_hidden_state=encoded.last_hidden_state.float(),
        position_embeddings=encoded.position_embeddings.float(),
    )
    found, expected = (
        generate(model, {"input_ids": inputs["input_ids"]}, encoder_outputs=outputs, num_beams=3)
        for model, outputs in ((half, encoded), (rounded, as_float32))
    )
    assert isinstance(found.past_key_values, decoding.StepCache)
    assert found.past_key_values.self_attention_cache.kept.dtype == torch.float32
    first, exact = found.logits[0].float(), expected.logits[0]
    assert (first - exact).norm() < 16 * torch.finfo(dtype).eps * exact.norm()


def test_tokens_can_be_taken_back(tiny_model, inputs):
    encoded = tiny_model.encode(**inputs)
    with torch.no_grad():
        cache = tiny_model._decoding_weights.make_cache(tiny_model, 3)
        tokens = torch.tensor([[START, 5, 9, 11], [START, 40, 41, 3], [START, 7, 7, 9]])
        whole = tiny_model(decoder_input_ids=tokens, encoder_outputs=encoded, past_key_values=cache).logits
        cache.crop(9)
        assert cache.get_seq_length() == 4, "there were no more"
        for length, left in ((-3, 1), (2, 2)):
            cache.crop(length)
            assert cache.get_seq_length() == left
            rest = tiny_model(decoder_input_ids=tokens[:, left:], encoder_outputs=encoded, past_key_values=cache)
            torch.testing.assert_close(rest.logits, whole[:, left:])


def hook(model):
    model.decoder.layers[1].fc1.register_forward_hook(lambda *_: None)


def wrap(model):
    """As accelerate does where it moves weights between devices."""
    layer = model.decoder.layers[0]
    layer.forward = functools.partial(type(layer).forward, layer)


def adapt(module):
    """As adapters do, which take a module's place."""
    module.__class__ = type("Adapter", (type(module),), {})


CHANGES = {
    "hook": hook,
    "wrap": wrap,
    "adapt a product": lambda model: adapt(model.decoder.layers[0].fc2),
    "adapt a norm": lambda model: adapt(model.decoder.layers[0].ffn_layer_norm),
    "adapt the vocabulary": lambda model: adapt(model.decoder.output_projection),
    "train": lambda model: model.train(),
    "eager": lambda model: model.set_attn_implementation("eager"),
    "states": lambda model: setattr(model.config, "output_hidden_states", True),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_are_not_as_they_were_run_themselves(tiny_model, change):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        assert model._decoding_weights.make_cache(model, 1) is not None
        CHANGES[change](model)
        assert model._decoding_weights.make_cache(model, 1) is None


def test_a_vocabulary_of_another_size_is_stepped_too(tiny_model, inputs):
    model = copy.deepcopy(tiny_model)
    model.resize_token_embeddings(130)
    stepped, expected = generate(model, inputs, num_beams=3), generate(by_layers(model), inputs, num_beams=3)
    assert isinstance(stepped.past_key_values, decoding.StepCache)
    assert torch.equal(stepped.sequences, expected.sequences)


@pytest.mark.parametrize(
    "asked",
    [
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_what_steps_cannot_give_comes_from_the_layers(tiny_model, inputs, asked, monkeypatch):
    model = copy.deepcopy(tiny_model)
    monkeypatch.setattr(model._decoding_weights, "make_cache", lambda *_: pytest.fail("steps were taken"))
    model.set_attn_implementation("eager" if "output_attentions" in asked else "sdpa")
    one = {name: value[:1] for name, value in inputs.items()}
    generate(model, one, num_beams=1, max_new_tokens=4, min_new_tokens=4, **asked)
