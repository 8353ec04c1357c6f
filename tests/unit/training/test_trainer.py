"""The loss does not depend on how a batch is split; what stops a run; one update by hand."""

import json
import math

import pytest
import torch
from loopback_hub import LoopbackHub, use_in_this_process
from tiny_shop import NOISE, largest_difference, weights

from ofa_hf.errors import UserError
from ofa_hf.models import load_model
from ofa_hf.training import FairseqAdamW
from ofa_hf.training.finetuning import adapt, make_trainer
from ofa_hf.training.locking import lock
from ofa_hf.training.regularization import regularize
from ofa_hf.training.sources import load_data


ROUNDING = 2e-5  # of weights after 8 steps of 1e-3


@pytest.fixture
def build(parse):
    """A trainer in the shop, ready to train, without dropout."""

    def build(**changes):
        args, trainer_args = parse(dropout=0.0, **changes)
        model, processor = load_model(args.model_name_or_path, device="cpu")
        regularize(model, args)
        lock(model, args)
        return make_trainer(args, adapt(args, trainer_args), model, processor, load_data(args, processor))

    return build


def loss_and_gradients(trainer, rows: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    model, batch = trainer.model.train(), trainer.data_collator(rows)
    number = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=number)
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("through_encoder", [False, True])
def test_captions_that_share_an_image_give_the_loss_and_gradients_of_captions_that_do_not(build, through_encoder):
    changes = {"label_smoothing": 0.1, "embed_gradient_through_encoder": through_encoder}
    shared = loss_and_gradients(trainer := build(**changes), rows := [trainer.train_dataset[n] for n in range(3)])
    apart = [{**row, "targets": [caption]} for row in rows for caption in row["targets"]]
    alone = loss_and_gradients(build(**changes), apart)
    assert shared[0] == pytest.approx(alone[0], rel=1e-6)
    assert shared[1].keys() == alone[1].keys()
    for name, gradient in shared[1].items():
        torch.testing.assert_close(gradient, alone[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_images_with_fewer_captions_than_others_change_nothing(build):
    rows = [(trainer := build()).train_dataset[number] for number in range(2)]
    uneven = [rows[0], {**rows[1], "targets": rows[1]["targets"][:1]}]
    alone = [{**row, "targets": [caption]} for row in uneven for caption in row["targets"]]
    assert loss_and_gradients(trainer, uneven)[0] == pytest.approx(loss_and_gradients(build(), alone)[0], rel=1e-6)


def test_accumulated_halves_equal_a_whole_batch(train):
    whole = train("whole", dropout=0.0)
    halves = train("halves", dropout=0.0, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert halves.num_steps == whole.num_steps
    assert halves.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-6)
    assert largest_difference(whole.folder, halves.folder, but=NOISE) < ROUNDING


@pytest.mark.parametrize("frozen", [True, False])
def test_activation_checkpointing_changes_memory_alone(train, frozen):
    changes = {"freeze_encoder": frozen, "freeze_resnet": True, "max_steps": 3}
    kept, computed_again = train("kept", **changes), train("again", **changes, gradient_checkpointing=True)
    assert largest_difference(kept.folder, computed_again.folder, but=NOISE) < ROUNDING


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train):
    first, second, other = train("1", max_steps=3), train("2", max_steps=3), train("3", max_steps=3, seed=8)
    assert largest_difference(first.folder, second.folder) == 0
    assert largest_difference(first.folder, other.folder) > 1e-4


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(train, tmp_path):
    wild = {"learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "steps", "save_steps": 1}
    # The first update leaves finite weights, the second loss is none.
    with pytest.raises(UserError, match=r"loss of step 2 is nan.*checkpoint-1, is kept.*learning_rate below 1e\+30"):
        train(**wild)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "out/checkpoint-1").values())


def test_an_evaluation_loss_that_is_no_number_stops_the_run_before_it_saves(train, tmp_path):
    wild = {"learning_rate": 1e30, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    with pytest.raises(UserError, match=r"evaluation loss after step 1 is nan.*no checkpoint was saved"):
        train(**wild, eval_steps=1)
    assert not list((tmp_path / "out").glob("**/model.safetensors"))


def test_weights_that_the_very_last_step_broke_are_not_saved_as_the_model(train, tmp_path):
    with pytest.raises(UserError, match="no longer finite"):
        train(learning_rate=1e39, max_steps=1, save_strategy="no", lr_scheduler_type="constant")
    assert not list((tmp_path / "out").glob("**/model.safetensors"))


def test_weights_that_are_no_numbers_are_never_saved(build):
    trainer = build()
    trainer.model.decoder.layer_norm.weight.data[0] = math.inf
    with pytest.raises(UserError, match=r"decoder\.layer_norm\.weight is no longer finite"):
        trainer._save_checkpoint(trainer.model, None)


def test_evaluation_loss_is_the_mean_over_all_real_tokens(build):
    trainer = build(label_smoothing=0.3, per_device_eval_batch_size=3)
    rows = [trainer.eval_dataset[number] for number in range(len(trainer.eval_dataset))]
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss = trainer.model.eval()(**batch, label_smoothing=0.0).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert trainer.last_predictions.keys() == {row["id"] for row in rows}


def test_decay_reaches_all_parameters_only_when_asked(build):
    some, every = (
        set(trainer.get_decay_parameter_names(trainer.model))
        for trainer in (build(), build(decay_all_parameters=True))
    )
    assert "decoder.layer_norm.weight" not in some
    assert {"decoder.layer_norm.weight", "decoder.layers.0.fc1.bias"} <= every


def test_fairseq_adam_adds_epsilon_before_it_corrects_the_bias():
    weight, gradient, eps, beta = torch.nn.Parameter(torch.tensor([1.0])), 1e-4, 1e-3, 0.999
    optimizer = FairseqAdamW([weight], lr=0.1, eps=eps, betas=(0.9, beta), weight_decay=0.0)
    expected, mean, square = 1.0, 0.0, 0.0
    for step in (1, 2, 3):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, beta * square + (1 - beta) * gradient**2
        size = 0.1 * math.sqrt(1 - beta**step) / (1 - 0.9**step)
        expected -= size * mean / (math.sqrt(square) + eps)
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_fairseq_adam_goes_on_from_its_saved_state():
    def make(weight):
        return FairseqAdamW([weight], lr=0.1)

    first, second = torch.nn.Parameter(torch.tensor([1.0])), torch.nn.Parameter(torch.tensor([1.0]))
    one, other = make(first), make(second)
    for optimizer, weight in ((one, first), (other, second)):
        weight.grad = torch.tensor([0.5])
        optimizer.step()
    resumed = make(second)
    resumed.load_state_dict(other.state_dict())
    one.step()
    resumed.step()
    assert torch.equal(first, second)


def test_fairseq_adam_is_refused_with_another_optimizer(build):
    with pytest.raises(UserError, match="adam_epsilon_as_fairseq needs AdamW, but optim is"):
        build(adam_epsilon_as_fairseq=True, optim="sgd")


def test_rows_of_another_kind_are_not_evaluated(build):
    trainer = build()
    with pytest.raises(UserError, match="Wrap the rows"):
        trainer.evaluation_loop(torch.utils.data.DataLoader([1, 2]), "Evaluation")


def test_the_trainers_own_push_publishes_the_model_with_its_scores_and_nothing_else(build, monkeypatch):
    trainer = build(max_steps=2, save_strategy="steps", save_steps=1, hub_model_id="shop/model")
    trainer.train()
    score = trainer.evaluate()["eval_cider_d"]
    with LoopbackHub() as hub:
        use_in_this_process(hub, monkeypatch)
        assert trainer.push_to_hub("Second try").endswith("/shop/model")
        files = hub.files("shop/model")
    assert {"model.safetensors", "modeling_ofa.py", "finetune_results.json"} <= set(files)
    assert not [name for name in files if "/" in name or name == "training_args.bin"]
    assert json.loads(files["finetune_results.json"])["metrics"]["eval_cider_d"] == score
    assert "model-index" in files["README.md"].decode()
