"""Text to image: the network's scores of codes, the losses and the searches equal the official ones."""

import copy
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.codes import FIRST, NUMBER, RECORDED, build_model, codes_of, encoded
from fixtures.recorded import random_words
from fixtures.stages import LOGITS, SCORES

from ofa_hf.fast_decoding_ofa import StepCache
from ofa_hf.training.losses import smoothed_cross_entropy


SHARED = Path(__file__).parents[2].parent / "shared" / "golden_gen"
IS_PLAIN = os.environ.get("OFA_FAST") == "0"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recordings in ../shared/golden_gen, not here")


@torch.inference_mode()
def logits_of(case: dict, previous: torch.Tensor) -> torch.Tensor:
    model, masks = build_model(case["code_image_size"]), torch.tensor(case["code_masks"])
    return model(**encoded(case["src"]), decoder_input_ids=previous, code_masks=masks).logits


def assert_close(logits: torch.Tensor, previous: torch.Tensor, case: dict) -> None:
    real = previous != 1
    codes = logits[..., FIRST : FIRST + NUMBER]
    best = codes.gather(-1, torch.tensor(case["codes_top10_idx"]))
    assert (best - torch.tensor(case["codes_top10_val"]))[real].abs().max() < LOGITS
    sums = logits[..., codes_of(64).words].double().logsumexp(-1)
    assert (sums - torch.tensor(case["lse_allowed_f64"]))[real].abs().max() < LOGITS


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_scores_of_codes_equal_the_official_ones(name):
    case = RECORDED["cases"][name]
    previous = torch.tensor(case["prev"])
    logits = logits_of(case, previous)
    assert_close(logits[:, case["positions"]], previous[:, case["positions"]], case)


def loss_of(case: dict, previous: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """As in an evaluation, and as in training, which computes gradients with it."""
    model, inputs = build_model(case["code_image_size"]), encoded(case["src"])
    with torch.no_grad():
        texts = {"input_ids": previous, "code_masks": torch.tensor(case["code_masks"])}
        features = model.decoder(**texts, encoder_outputs=model.encode(**inputs)).last_hidden_state
    weight, found = model.decoder.output_projection.weight, []
    for is_training in (False, True):
        with torch.set_grad_enabled(is_training):
            loss = smoothed_cross_entropy(
                features.requires_grad_(is_training),
                weight.detach(),
                labels.masked_fill(labels == 1, -100),
                num_items_in_batch=1,
                label_smoothing=smoothing,
                word_sets=torch.tensor([codes_of(64).words]),
                set_numbers=torch.zeros_like(labels),
            )
        assert loss.requires_grad == is_training
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    return found[0]


@pytest.mark.parametrize("name", RECORDED["loss"])
def test_losses_among_codes_equal_the_official_ones(name):
    case, smoothing = RECORDED["cases"][name.split("/")[0]], float(name.split("/eps")[1])
    loss = loss_of(case, torch.tensor(case["prev"]), torch.tensor(case["target"]), smoothing)
    assert loss == pytest.approx(RECORDED["loss"][name]["loss_sum"], rel=1e-4)


def generate(search: dict, **settings):
    model, length = build_model(search["code_image_size"]), search["args"]["max_len_b"]
    settings = {
        "max_length": length + 2,
        "temperature": search["args"]["temperature"],
        "no_repeat_ngram_size": search["args"].get("no_repeat_ngram_size", 0),
        "length_penalty": 0.0 if search["args"].get("unnormalized") else 1.0,
        "logits_processor": [codes_of(length)],
        "return_dict_in_generate": True,
        **settings,
    }
    masks = torch.ones(len(search["src"]), dtype=torch.bool)
    return model.generate(**encoded(search["src"]), code_masks=masks, **settings)


def settings_of(search: dict) -> dict:
    """A sampling search with one candidate is greedy."""
    beam = search["args"]["beam"]
    if "sampling_topk" in search["args"]:
        return {"do_sample": True, "top_k": search["args"]["sampling_topk"], "num_return_sequences": beam}
    if beam == 1:
        return {"num_return_sequences": 1}
    return {"num_beams": beam, "num_return_sequences": beam, "early_stopping": True}


def assert_found(search: dict, best: list[dict]) -> None:
    settings = settings_of(search)
    if "num_beams" in settings and IS_PLAIN:
        settings["output_scores"] = True  # transformers' own search keeps the scores of texts only then
    found = generate(search, **settings)
    per_text = len(found.sequences) // len(search["src"])
    assert found.sequences[::per_text, 1:].tolist() == [one["tokens"] for one in best]
    tolerance = 2e-4 if search["args"].get("unnormalized") else SCORES
    scores = scores_of(found, search)[::per_text].tolist()
    assert scores == pytest.approx([one["score"] for one in best], abs=tolerance)


def scores_of(found, search: dict) -> torch.Tensor:
    """Scores of found codes; transformers' own sampling, which runs without fast code, returns none."""
    if "sequences_scores" in found:
        return found.sequences_scores
    assert IS_PLAIN
    length = search["args"]["max_len_b"]
    masks = torch.ones(len(found.sequences), dtype=torch.bool)
    model, words = build_model(search["code_image_size"]), codes_of(length).words
    return model.sequence_scores(found.sequences, **encoded(search["src"]), code_masks=masks, words=words)


@pytest.mark.parametrize("name", [name for name in RECORDED["search"] if "topk256" not in name])
def test_searches_find_the_official_codes(name):
    search = RECORDED["search"][name]
    assert_found(search, [row[0] for row in search["found"]])


def test_scores_of_sampled_codes_equal_the_official_ones():
    search = RECORDED["search"]["i64/topk256_seed7"]
    texts = torch.tensor([[0, *one["tokens"]] for row in search["found"] for one in row])
    scores = build_model(64).sequence_scores(
        texts,
        **encoded(search["src"]),
        code_masks=torch.ones(len(texts), dtype=torch.bool),
        words=codes_of(64).words,
    )
    assert scores.tolist() == pytest.approx([one["score"] for row in search["found"] for one in row], abs=SCORES)


@pytest.mark.parametrize("name", RECORDED["first_step"])
@torch.inference_mode()
def test_the_256_candidates_of_a_step_are_the_official_ones(name):
    step = RECORDED["first_step"][name]
    model, codes, rows = build_model(64), codes_of(64), len(step["src"])
    previous = torch.tensor([[0, *(FIRST + code for code in step["prefix_codes"])]] * rows)
    logits = model(
        **encoded(step["src"]), decoder_input_ids=previous, code_masks=torch.ones(rows, dtype=torch.bool)
    ).logits[:, -1]
    special = logits[:, codes.words].softmax(-1)[:, :4].sum(-1)
    assert special.tolist() == pytest.approx(step["special"], abs=1e-5)
    values, ids = codes(previous, logits).topk(256)
    assert (values - torch.tensor(step["log_probs"])).abs().max() < LOGITS
    for found, recorded in zip(ids.tolist(), step["ids"], strict=True):
        assert set(found[:250]) <= set(recorded)  # those at the edge are close to each other


def test_samples_are_codes_among_the_best_and_a_seed_brings_them_again():
    search = {**RECORDED["search"]["i64/topk256_seed7"]}
    settings = {"do_sample": True, "top_k": 5, "num_return_sequences": 3}
    found = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        found.append(generate(search, **settings))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert not torch.equal(found[0].sequences, found[2].sequences)
    model, sequences = build_model(64), found[0].sequences
    masks = torch.ones(len(sequences), dtype=torch.bool)
    with torch.inference_mode():
        inputs = {name: value.repeat_interleave(3, 0) for name, value in encoded(search["src"]).items()}
        logits = model(**inputs, decoder_input_ids=sequences[:, :-1], code_masks=masks).logits[:, :-1]
    best = logits[..., FIRST : FIRST + NUMBER].topk(5).indices + FIRST
    assert (best == sequences[:, 1:-1, None]).any(-1).all()
    assert (sequences[:, -1] == 2).all()
    scores = model.sequence_scores(sequences, **encoded(search["src"]), code_masks=masks, words=codes_of(64).words)
    assert torch.allclose(scores_of(found[0], search), scores, atol=SCORES)


@pytest.mark.skipif(IS_PLAIN, reason="without fast code there is only one loop")
def test_another_loop_of_transformers_finds_the_same_codes():
    search = RECORDED["search"]["i64/beam1"]
    ours = generate(search)
    theirs = generate(search, output_scores=True)  # which only their loop keeps
    assert type(ours) is not type(theirs)
    assert torch.equal(ours.sequences, theirs.sequences)


@pytest.mark.skipif(IS_PLAIN, reason="fast code is switched off")
def test_codes_are_decoded_by_fast_steps_in_memory_that_does_not_grow():
    cache = generate(RECORDED["search"]["i64/topk1"], do_sample=True, num_return_sequences=2)
    cache = next(value for value in cache.values() if isinstance(value, StepCache))
    rows, length = 2 * len(RECORDED["search"]["i64/topk1"]["src"]), 64
    assert cache.self_attention_cache.kept.shape[2] == rows  # each sample has its own tokens
    assert cache.self_attention_cache.kept.shape[4] == length + 2  # made once
    assert cache.cross_attention_cache.layers[0].keys.shape[0] == rows // 2  # of a text, once


# ---------------------------------------------------------------------------------------------- every number


@cache
def everything() -> tuple[dict, dict]:
    facts = json.loads((SHARED / "golden_image_gen.json").read_text(encoding="utf-8"))
    return facts, np.load(SHARED / "golden_image_gen.npz")


def previous_of(name: str, case: dict) -> torch.Tensor:
    if "prev" in case:
        return torch.tensor(case["prev"])
    rows = [
        [0, *(FIRST + random_words(RECORDED["seed"], f"codes|{name}|{row}", number) % 8192).astype(int)]
        for row, number in case["codes_i_n"]
    ]
    return torch.tensor(np.array(rows))


@needs_shared
@pytest.mark.slow
def test_every_other_recorded_score_and_loss_of_codes_in_all_windows():
    facts, arrays = everything()
    for name, case in facts["cases"].items():
        if name in RECORDED["cases"]:
            continue
        previous = previous_of(name, case)
        keys = ("codes_top10_idx", "codes_top10_val", "lse_allowed_f64")
        recorded = {key: arrays[f"{name}/{key}"].tolist() for key in keys}
        assert_close(logits_of(case, previous), previous, {**case, **recorded})
        labels = torch.cat([previous[:, 1:], torch.full((len(previous), 1), 2)], dim=1)
        labels = torch.tensor(case["target"]) if "target" in case else labels
        for smoothing in ("0.0", "0.1"):
            loss = loss_of(case, previous, labels, float(smoothing))
            assert loss == pytest.approx(facts["loss"][f"{name}/eps{smoothing}"]["loss_sum"], rel=1e-4)
    assert facts["cases"].keys() - RECORDED["cases"].keys() == {"i64_ragged", "i128", "i256"}


@needs_shared
@pytest.mark.slow
def test_every_other_recorded_search_of_codes():
    searches = {name: one for name, one in everything()[0]["search"].items() if "topk256" not in name}
    ranges = {name: one["constraint_range"] for name, one in searches.items()}
    for name, search in searches.items():
        if ranges[name] and name not in RECORDED["search"]:
            assert_found(search, [row[0] for row in search["hypos"]])
    assert len(searches) == 10
    assert [name for name, one in ranges.items() if not one] == ["i64/norange_beam1"]


@needs_shared
def test_without_a_range_any_word_can_win():
    search = everything()[0]["search"]["i64/norange_beam1"]
    model, length = build_model(64), search["args"]["max_len_b"]
    config = {"suppress_tokens": [0, 1, 3], "min_length": length + 1, "max_length": length + 2}
    generation = model.generation_config.from_dict({**model.generation_config.to_dict(), **config})
    generation.end_at_max_length = True
    found = model.generate(**encoded(search["src"]), code_masks=torch.tensor([True]), generation_config=generation)
    assert found[0, 1:].tolist() == search["hypos"][0][0]["tokens"]


@pytest.mark.skipif(IS_PLAIN, reason="fast code is switched off")
def test_in_bfloat16_the_cache_of_codes_is_float32_and_scores_stay_near():
    search, model = RECORDED["search"]["i64/topk1"], copy.deepcopy(build_model(64)).bfloat16()
    masks = torch.ones(len(search["src"]), dtype=torch.bool)
    settings = {"max_length": 66, "do_sample": False, "logits_processor": [codes_of(64)]}
    found = model.generate(**encoded(search["src"]), code_masks=masks, return_dict_in_generate=True, **settings)
    cache = next(value for value in found.values() if isinstance(value, StepCache))
    assert cache.self_attention_cache.kept.dtype == torch.float32  # products of bfloat16 would copy it at each step
    inputs = {"code_masks": masks, "words": codes_of(64).words}
    exact = build_model(64).sequence_scores(found.sequences, **encoded(search["src"]), **inputs)
    assert (found.sequences_scores - exact).abs().max() < 0.02
