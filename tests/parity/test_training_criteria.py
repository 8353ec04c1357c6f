"""The official criterion's loss, number of tokens and gradients, through the Trainer's own loss path."""

import pytest
import torch
from fixtures.recorded import name_here
from fixtures.training_runs import as_inputs, make_trainer, recording


CASES = recording()["criteria"]["cases"]
NOT_OURS = {"sentence_avg"}


@pytest.fixture(scope="module", params=CASES)
def outcome(request, tmp_path_factory):
    """A recorded case, and the loss, token number and model with gradients that our Trainer gives."""
    case = CASES[request.param]
    ours = {name: value for name, value in case["args"].items() if name not in NOT_OURS}
    batch = recording()["criteria"]["batch"]
    trainer = make_trainer(tmp_path_factory.mktemp("run"), [batch], {"freeze_encoder": False, **ours}, {})
    trainer.state.global_step = case["update_num"]
    model, inputs = trainer.model.train(), as_inputs(batch)
    for module in model.encoder.embed_images.modules():
        module.training = False  # recorded with fixed BatchNorm statistics
    number = trainer._get_num_items_in_batch([inputs], torch.device("cpu"))
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=number)
    loss.backward()
    return case, loss.item(), int(number), model


def test_loss_and_number_of_tokens_equal_the_recorded_ones(outcome):
    case, loss, number, _ = outcome
    assert number == case["sample_size"]
    assert loss * number == pytest.approx(case["loss_sum"], rel=2e-6)


def test_gradient_norms_equal_the_recorded_ones(outcome):
    case, _, _, model = outcome
    norms = {
        name: parameter.grad.double().norm() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for official, norm in case["grad_norms_of_loss_mean"].items():
        if official == "__total_norm__":
            assert torch.stack(list(norms.values())).norm().item() == pytest.approx(norm, rel=1e-4)
        else:
            assert norms[name_here(official)].item() == pytest.approx(norm, rel=1e-4), official
