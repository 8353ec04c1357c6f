"""English captioning equals the official code's: logits, and best captions under the settings of the catalogue."""

import json

import pytest
import torch
from fixtures.recorded import FIXTURES, NAMES_OF_SHARED_EMBEDDING, Recording, digest, official_weights
from fixtures.stages import LOGITS, SCORES
from transformers import GenerationConfig

from ofa_hf.catalogue.published import SETTINGS
from ofa_hf.conversion.write import TOKEN_IDS


CASE = "e01_caption"


@pytest.fixture(scope="module")
def english():
    """The recording; the network is that of the Chinese one with the English vocabulary."""
    facts = json.loads((FIXTURES / "recorded_english.json").read_text(encoding="utf-8"))
    chinese, size = Recording.load(), facts["vocab_size"]
    facts["config"] = {**chinese.facts["config"], "vocab_size": size}
    facts["shapes"] = {
        name: (size, *shape[1:]) if name in NAMES_OF_SHARED_EMBEDDING else shape
        for name, shape in chinese.shapes.items()
    }
    recording = Recording(facts, {})
    recording.weights = official_weights(facts["seed"], recording.shapes, lean=facts["lean"])
    assert digest(recording.weights) == facts["weights_sha256"]
    return recording


@pytest.fixture(scope="module")
def model(english):
    return english.build_model()


@torch.inference_mode()
def test_logits_equal_the_official_ones(english, model):
    recorded, real = english.facts["logits"], torch.tensor(english.cases[CASE]["prev"]) != 1
    logits = model(**english.encoder_inputs(CASE), **english.decoder_inputs(CASE)).logits
    best = logits.gather(-1, torch.tensor(recorded["best"]))
    assert (best - torch.tensor(recorded["values"]))[real].abs().max() < LOGITS
    assert (logits.logsumexp(-1) - torch.tensor(recorded["log_sums"]))[real].abs().max() < LOGITS


@pytest.mark.parametrize(("name", "settings"), [("e01/beam5", "caption_en"), ("e01/beam10_huge", "caption_huge_en")])
def test_best_captions_equal_the_official_generators(english, model, name, settings):
    config = GenerationConfig(**TOKEN_IDS, **SETTINGS[settings].generation)
    found = model.generate(
        **english.encoder_inputs(CASE), generation_config=config, output_scores=True, return_dict_in_generate=True
    )
    recorded = english.facts["beam"][name]
    texts = [[token for token in row if token != 1] for row in found.sequences[:, 1:].tolist()]
    assert texts == [best["tokens"] for best in recorded]
    assert found.sequences_scores.tolist() == pytest.approx([best["score"] for best in recorded], abs=SCORES)
