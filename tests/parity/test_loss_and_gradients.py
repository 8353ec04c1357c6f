"""Training: the teacher-forced loss and its gradients, with and without label smoothing."""

import numpy as np
import pytest
import torch
from fixtures.recorded import PAD, name_here
from fixtures.stages import GRADIENTS

from ofa_hf.training.losses import smoothed_cross_entropy, without_logits


SMOOTHING = {"eps0": 0.0, "eps0.1": 0.1, "codes_partial_eps0": 0.0}


def labels_of(recording, name: str) -> tuple[str, torch.Tensor]:
    """Case and labels of a recorded loss."""
    target = recording.facts["loss"][name].get("target")
    case = "c02_padding" if target is None else "c08c_codes_partial"
    labels = torch.tensor(recording.cases[case]["target"] if target is None else target)
    return case, labels.masked_fill(labels == PAD, -100)


def training_loss(recording, model, name: str, **changes) -> torch.Tensor:
    case, labels = labels_of(recording, name)
    inputs = {**recording.encoder_inputs(case), **recording.decoder_inputs(case)}
    is_lean = changes.pop("is_lean", False)
    model.loss_function = smoothed_cross_entropy
    return model(**inputs | {"labels": labels} | changes | (without_logits(labels) if is_lean else {})).loss


@pytest.fixture(scope="module", params=SMOOTHING)
def trained(request, recording, recorded_model):
    """Name of a recorded loss and the gradients that our loss gives."""
    name = request.param
    recorded_model.zero_grad()
    training_loss(recording, recorded_model, name, label_smoothing=SMOOTHING[name]).backward()
    yield name, {parameter: tensor.grad for parameter, tensor in recorded_model.named_parameters()}
    recorded_model.zero_grad()


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eps0", {}),
        ("eps0", {"decoder_input_ids": None}),
        ("eps0.1", {"label_smoothing": 0.1}),
        ("eps0.1_dropworst0.2_update1", {"label_smoothing": 0.1, "drop_worst_ratio": 0.2}),
        ("codes_partial_eps0", {}),
    ],
    ids=["plain", "shifted by the model", "smoothed", "worst dropped", "codes"],
)
def test_loss_equals_the_recorded_one(recording, recorded_model, name, arguments, is_lean):
    recorded = recording.facts["loss"][name]["loss_mean"]
    with torch.no_grad():
        loss = training_loss(recording, recorded_model, name, is_lean=is_lean, **arguments)
    assert loss.item() == pytest.approx(recorded, rel=2e-6)
    loss = training_loss(recording, recorded_model, name, is_lean=is_lean, **arguments)
    assert loss.item() == pytest.approx(recorded, rel=2e-6)


def test_ignored_labels_at_the_beginning_give_the_loss_recorded_without_a_prefix(recording, recorded_model):
    labels = labels_of(recording, "eps0")[1]
    labels[:, :2] = -100
    loss = training_loss(recording, recorded_model, "eps0", labels=labels, label_smoothing=0.1)
    assert loss.item() == pytest.approx(recording.facts["loss"]["eps0.1_ignore_prefix_size2"]["loss_mean"], rel=2e-6)


def test_gradient_norms_equal_the_recorded_ones(recording, trained):
    name, gradients = trained
    for official, norm in recording.facts["gradient_norms"][name].items():
        if official == "__params_without_grad__":
            assert {name_here(one) for one in norm} == {one for one, grad in gradients.items() if grad is None}
        elif official == "__total_norm__":
            squares = sum(gradient.double().square().sum() for gradient in gradients.values() if gradient is not None)
            assert squares.sqrt().item() == pytest.approx(norm, rel=GRADIENTS)
        elif norm is None:
            assert gradients[name_here(official)] is None, official
        else:  # the smallest are rounding noise around zero
            found = gradients[name_here(official)].double().norm().item()
            assert found == pytest.approx(norm, rel=GRADIENTS, abs=1e-7), official


@pytest.mark.parametrize("trained", ["eps0.1"], indirect=True)
@pytest.mark.parametrize(
    ("official", "columns"),
    [
        ("encoder.image_proj.weight", slice(None, None, 16)),
        ("decoder.layers.1.encoder_attn.v_proj.weight", slice(None)),
        ("encoder.token_rel_pos_table_list.0.weight", slice(None)),
    ],
)
def test_gradients_equal_the_recorded_ones(recording, trained, official, columns):
    gradient = trained[1][name_here(official)][:, columns]
    largest = np.abs(recording.recorded(f"gradient/{official}")[1]).max()
    assert recording.error(f"gradient/{official}", gradient) < GRADIENTS * largest
