"""Tasks other than captions: the processor's images and settings give the official answers and scores."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import recorded_tasks
from fixtures.stages import LOGITS, SCORES

from ofa_hf import OFAImageProcessor
from ofa_hf.boxes_ofa import PlacesOnly, places_to_box
from ofa_hf.catalogue.published import SETTINGS
from ofa_hf.generation_ofa import AnswerTrie
from ofa_hf.tasks_ofa import TASKS


FACTS = recorded_tasks.facts()
BOXES = [name for name in FACTS["beam"] if "refcoco" in name]


def assert_same(found, name):
    best = FACTS["beam"][name]["best"]
    assert [ids[1 : 1 + len(one["tokens"])] for ids, one in zip(found.sequences.tolist(), best)] == [
        one["tokens"] for one in best
    ]
    if "sequences_scores" in found:
        assert found.sequences_scores.tolist() == pytest.approx([one["score"] for one in best], abs=SCORES)


SHARED = Path(__file__).parents[2].parent / "shared" / "golden_tasks"
SIZES = {"ocr": 480, "refcoco": 512}


@cache
def whole_cases() -> tuple[dict, dict]:
    """Every recorded case, and the numbers of all."""
    facts = json.loads((SHARED / "golden_tasks.json").read_text(encoding="utf-8"))
    return facts["cases"], dict(np.load(SHARED / "golden_tasks.npz"))


def pixels_of(name: str, case: dict) -> dict:
    """Images as the processor of the case's task prepares them."""
    if not case["images"]:
        return {}
    kind = next((kind for kind in SIZES if kind in name), "")
    task = TASKS["classification" if case.get("imagenet_mean_std") else kind if kind == "ocr" else "caption"]
    pictures = [recorded_tasks.image(one) for one in case["images"]]
    return OFAImageProcessor(size=SIZES.get(kind, 256))(pictures, **task.image, return_tensors="pt")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recordings in ../shared/golden_tasks, not here")
@torch.inference_mode()
def test_every_number_of_every_case_equals_the_recorded_one():
    cases, recorded = whole_cases()
    for name, case in cases.items():
        ids, previous = torch.tensor(case["src"]), torch.tensor(case["prev"])
        inputs = {"input_ids": ids, "attention_mask": (ids != 1).long(), **pixels_of(name, case)}
        logits = recorded_tasks.build_model(case["lang"])(**inputs, decoder_input_ids=previous).logits
        real = previous != 1
        best = logits.gather(-1, torch.from_numpy(recorded[f"{name}/logits/top10_idx"]).long())
        assert (best - torch.from_numpy(recorded[f"{name}/logits/top10_val"]))[real].abs().max() < LOGITS, name
        sums = torch.from_numpy(recorded[f"{name}/logits/lse_f64"])
        assert (logits.double().logsumexp(-1) - sums)[real].abs().max() < LOGITS, name
        places = recorded.get(f"{name}/logits/bins")
        if places is not None:
            assert (logits[..., -1000:] - torch.from_numpy(places))[real].abs().max() < LOGITS, name
    assert len(cases) == 13


@pytest.mark.parametrize("name", BOXES)
def test_places_equal_the_official_ones(name):
    beam = FACTS["beam"][name]
    case, lang = beam["case"], FACTS["cases"][beam["case"]]["lang"]
    pictures, first = recorded_tasks.images(case), recorded_tasks.FIRST_PLACE[lang]
    pixels = OFAImageProcessor(size=512)(pictures, return_tensors="pt")
    settings = dict(TASKS["grounding"].generation) | {"num_beams": beam["args"]["beam"], "early_stopping": True}
    if beam["constraint_range"]:
        settings["logits_processor"] = [PlacesOnly(first, 2, renormalize=not beam["zero_shot"])]
    model = recorded_tasks.build_model(lang)
    found = model.generate(**recorded_tasks.encoded(case), **pixels, **settings, return_dict_in_generate=True)
    assert_same(found, name)
    if beam["constraint_range"]:
        for ids, picture, result in zip(found.sequences.tolist(), pictures, beam["results"], strict=True):
            box = places_to_box([index - first for index in ids[1:5]], picture.size, (512, 512))
            assert list(box.values()) == pytest.approx(result["box"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in FACTS["beam"] if "ocr" in name])
def test_read_texts_equal_the_official_ones(name):
    task = TASKS["ocr"]
    case = FACTS["beam"][name]["case"]
    pixels = OFAImageProcessor(size=480)(recorded_tasks.images(case), **task.image, return_tensors="pt")
    model = recorded_tasks.build_model("cn")
    inputs = {**recorded_tasks.encoded(case), **pixels}
    assert_same(model.generate(**inputs, **task.generation, return_dict_in_generate=True), name)


def starts_of(case):
    """Starts of answers as the processor gives them: padded on the left."""
    prompts = FACTS["cases"][case].get("decoder_prompts") or [[0]] * len(FACTS["cases"][case]["src"])
    longest = max(map(len, prompts))
    return {
        "decoder_input_ids": torch.tensor([[1] * (longest - len(ids)) + ids for ids in prompts]),
        "decoder_attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]),
    }


@pytest.mark.parametrize("paths_per_batch", [1, 2, 64])
@pytest.mark.parametrize("name", FACTS["choices"])
def test_scores_of_all_candidates_equal_the_official_ones(name, paths_per_batch):
    recorded = FACTS["choices"][name]
    task = TASKS["classification"] if "classify" in name else TASKS["vqa"]
    pixels = OFAImageProcessor(size=256)(recorded_tasks.images(recorded["case"]), **task.image, return_tensors="pt")
    inputs = {**recorded_tasks.encoded(recorded["case"]), **starts_of(recorded["case"]), **pixels}
    model = recorded_tasks.build_model("en")
    scores = model.score_choices(recorded["candidate_ids"], **inputs, paths_per_batch=paths_per_batch)
    assert (scores - torch.tensor(recorded["log_probs"])).abs().max() < 5e-5
    assert torch.allclose(scores.exp().sum(1), torch.ones(2), atol=1e-4)


# After a whole question with its `</s>` the official search takes that for the end of the answer: it finds nothing.
FINDS_NOTHING = "e02_vqa_src/beam5_trie"


@pytest.mark.parametrize("name", [name for name in FACTS["beam"] if "vqa" in name and name != FINDS_NOTHING])
def test_answers_to_questions_equal_the_official_ones(name):
    beam = FACTS["beam"][name]
    case, lang = beam["case"], FACTS["cases"][beam["case"]]["lang"]
    pixels = OFAImageProcessor(size=256)(recorded_tasks.images(case), return_tensors="pt")
    encoded = {**recorded_tasks.encoded(case), **pixels}
    model = recorded_tasks.build_model(lang)
    settings = {**TASKS["vqa"].generation, "num_beams": beam["args"]["beam"]}
    for row, (ids, best) in enumerate(zip(FACTS["cases"][case]["decoder_prompts"], beam["best"], strict=True)):
        inputs = {key: value[row : row + 1] for key, value in encoded.items()}
        if "max_len_b" in beam["args"]:
            settings["max_new_tokens"] = beam["args"]["max_len_b"] + 2 - len(ids)
        if name.endswith("trie"):
            choices = FACTS["choices"][name.replace("beam5_trie", "allcand")]["candidate_ids"]
            settings["logits_processor"] = [AnswerTrie(choices, 2, len(ids))]
        found = model.generate(**inputs, decoder_input_ids=torch.tensor([ids]), **settings)
        assert found[0, 1:].tolist() == best["tokens"]


def test_chinese_captions_equal_the_official_ones():
    name, case = "n01/beam8", "n01_caption_cn"
    pixels = OFAImageProcessor(size=256)(recorded_tasks.images(case), return_tensors="pt")
    settings = {**SETTINGS["caption_zh"].generation, "max_length": FACTS["beam"][name]["args"]["max_len_b"] + 2}
    model = recorded_tasks.build_model("cn")
    found = model.generate(**recorded_tasks.encoded(case), **pixels, **settings, return_dict_in_generate=True)
    assert_same(found, name)


def test_summaries_equal_the_official_ones():
    name = "e06_gigaword/beam6"
    settings = dict(TASKS["summarization"].generation)
    model = recorded_tasks.build_model("en")
    found = model.generate(**recorded_tasks.encoded("e06_gigaword"), **settings, return_dict_in_generate=True)
    assert_same(found, name)


@pytest.mark.parametrize("name", FACTS["glue"]["runs"])
def test_answers_about_sentences_have_the_official_scores(name):
    run = FACTS["glue"]["runs"][name]
    ids, start = torch.tensor(run["src"]), torch.tensor(run["prev"])
    scores = recorded_tasks.build_model("en", is_glue=True).score_choices(
        [[token] for token in run["candidate_ids"]],
        input_ids=ids,
        attention_mask=(ids != 1).long(),
        decoder_input_ids=start,
        decoder_attention_mask=(start != 1).long(),
    )
    assert (scores - torch.tensor(run["candidate_log_probs"])).abs().max() < 5e-5
    assert set(TASKS[run["task"]].choices) == set(run["candidates"])


@pytest.mark.parametrize("item", FACTS["glue"]["items"], ids=lambda item: item["task"])
def test_prompts_about_sentences_are_the_official_ones(item):
    assert TASKS[item["task"]].prompt("en", **item) == item["source_text"]
