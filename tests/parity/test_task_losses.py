"""Losses of tasks other than captions, with answers bound to a list and with confidences, equal the official ones."""

import json

import pytest
import torch
from fixtures import recorded_tasks
from fixtures.recorded import FIXTURES, image_bytes
from PIL import Image

from ofa_hf import OFAImageProcessor
from ofa_hf.tasks_ofa import TASKS
from ofa_hf.training.losses import smoothed_cross_entropy


LOSSES = json.loads((FIXTURES / "recorded_learning.json").read_text(encoding="utf-8"))["losses"]
PAD, IGNORED = 1, -100


def sets_of(allowed: list[list]) -> dict[str, torch.Tensor]:
    """Recorded lists of allowed words as the loss takes them; "all" and the question's places have none."""
    sets, numbers = {}, []
    for row in allowed:
        is_free = [words == "all" or not words for words in row]
        numbers.append([-1 if free else sets.setdefault(tuple(words), len(sets)) for words, free in zip(row, is_free)])
    longest = max(map(len, sets))
    rows = [[*words, *[-1] * (longest - len(words))] for words in sets]
    return {"word_sets": torch.tensor(rows), "set_numbers": torch.tensor(numbers)}


def pixels_of(case: dict, name: str) -> dict[str, torch.Tensor]:
    if "images" not in case:
        return {}
    seed = recorded_tasks.facts()["seed"]
    images = [Image.fromarray(image_bytes(seed, one["name"], one["h"], one["w"])) for one in case["images"]]
    options = TASKS["classification"].image if case.get("imagenet_mean_std") else {}
    return dict(OFAImageProcessor(size=512 if "refcoco" in name else 256)(images, return_tensors="pt", **options))


def loss_of(model, case: dict, smoothing: float, **inputs) -> tuple[float, int]:
    """Sum of the losses, and how many tokens they are of; computed as in training."""
    model.loss_function = smoothed_cross_entropy
    source, target = torch.tensor(case["src"]), torch.tensor(case["target"])
    labels = target.masked_fill(target == PAD, IGNORED)
    loss = model(
        input_ids=source,
        attention_mask=(source != PAD).long(),
        decoder_input_ids=torch.tensor(case["prev"]),
        labels=labels,
        label_smoothing=smoothing,
        num_items_in_batch=1,
        **inputs,
    ).loss
    assert loss.requires_grad
    return loss.item(), int((labels != IGNORED).sum())


@pytest.mark.parametrize("name", LOSSES["tasks"])
def test_losses_of_tasks(name):
    recorded, case = LOSSES["tasks"][name], LOSSES["cases"][name.partition("/")[0]]
    inputs = pixels_of(case, name)
    inputs |= sets_of(case["constraint_allowed"]) if "constraint_allowed" in case else {}
    inputs |= {"confidences": torch.tensor(case["conf"])} if "conf" in case else {}
    model = recorded_tasks.build_model(case["lang"])
    loss, number = loss_of(model, case, recorded["args"]["label_smoothing"], **inputs)
    assert number == recorded["sample_size"]
    assert loss == pytest.approx(recorded["loss_sum"], rel=1e-5)


@pytest.mark.parametrize("name", LOSSES["glue"])
def test_losses_of_tasks_about_sentences(name):
    run = recorded_tasks.facts()["glue"]["runs"][name]
    case = {**run, "target": LOSSES["glue"][name]["target"]}
    allowed = [[[] if token == PAD else run["candidate_ids"] for token in row] for row in case["target"]]
    model = recorded_tasks.build_model("en", is_glue=True)
    for smoothing in (0.0, 0.1):
        recorded = LOSSES["glue"][name][str(smoothing)]
        loss, number = loss_of(model, case, smoothing, **sets_of(allowed))
        assert number == recorded["sample_size"]
        assert loss == pytest.approx(recorded["loss_sum"], rel=1e-5)
