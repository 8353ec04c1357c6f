"""Twelve updates of the official code, repeated by the Trainer: losses, gradient norms, learning rates, weights.

`B_micro_mean` of the recordings, the mean over micro-batches of their own means, is what we do not do: our gradient is
that of the mean over all real tokens, as in the official code.
"""

import json
from pathlib import Path

import pytest
from fixtures.training_runs import final_errors, locked_run, mean_loss, official_run, recording


FOLDER = Path(__file__).parents[2].parent / "shared" / "golden_train"
TIMES_NOISE = 6  # the recording's own deviation between kernels or precisions, times this, is allowed
LEAST = {"loss": 5e-6, "gradient": 1e-5, "weight": 5e-6, "statistic": 5e-6}  # … but no less than float32 can show
SMALL_STEPS = "lr1e5"  # runs at a small learning rate have a noise of their own; that of the others is alike


def noise_of(run: dict) -> dict[str, float]:
    noise = run["noise"]
    weight = noise.get("final_without_k_bias", noise.get("final_values_without_k_bias"))
    loss = max(noise["loss"], noise.get("eval_nll", noise.get("eval", 0.0)))
    return {"loss": loss, "gradient": noise["gnorm_rel"], "weight": weight, "statistic": noise["bn_running"]}


def allowed(file: str, variant: str) -> dict[str, float]:
    """What a run may deviate. One pair of runs is one draw of its noise, so similar variants count too."""
    runs = recording()[file].items()
    alike = [noise_of(run) for name, run in runs if (SMALL_STEPS in name) == (SMALL_STEPS in variant)]
    return {what: max(least, TIMES_NOISE * max(noise[what] for noise in alike)) for what, least in LEAST.items()}


def check(trainer, run: dict, limits: dict[str, float], batches: list[dict], smoothing: float = 0.0) -> None:
    trainer.train()
    updates = run["updates"]
    assert trainer.losses == pytest.approx([update["loss"] for update in updates], abs=limits["loss"])
    norms = [update["grad_norm_before_clip"] for update in updates]
    assert trainer.gradient_norms == pytest.approx(norms, rel=limits["gradient"])
    assert trainer.learning_rates == pytest.approx([update["lr"] for update in updates], rel=1e-6, abs=1e-12)
    assert not beyond(limits, final_errors(trainer, run["final"]))
    found = [mean_loss(trainer, batch, smoothing) for batch in batches]
    assert found == pytest.approx(run["evaluation"], abs=limits["loss"])


def beyond(limits: dict[str, float], errors: dict[str, float]) -> dict[str, float]:
    return {
        name: error for name, error in errors.items() if error > limits["statistic" if "running" in name else "weight"]
    }


def repeat(folder: Path, file: str, variant: str):
    """Train as recorded, check all that is kept in this repository and return the trainer."""
    run, limits = recording()[file][variant], allowed(file, variant)
    if file == "train_locked":
        trainer, smoothing = locked_run(folder, run), run["config"].get("ls", 0.0)
        check(trainer, run, limits, recording()["locked_batches"], smoothing)
    else:
        trainer = official_run(folder, run, fairseq_adam=file == "train_trajectory")
        check(trainer, run, limits, recording()["batches"])
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains as recorded, each variant once."""
    trainers = {}

    def train(file: str, variant: str):
        if (file, variant) not in trainers:
            trainers[file, variant] = repeat(tmp_path_factory.mktemp(variant), file, variant)
        return trainers[file, variant]

    return train


def variants(file: str) -> list[str]:
    """The recorded variants, but for those of which another one differs in the strength of one setting alone."""
    return [name for name in recording()[file] if name not in ("B_freeze_resnet", "locked_word_embed_frozen")]


@pytest.mark.parametrize("variant", variants("train_trajectory_adamw"))
def test_official_training_with_adamw_is_repeated(trained, variant):
    trained("train_trajectory_adamw", variant)


@pytest.mark.parametrize("variant", variants("train_trajectory"))
def test_official_training_with_its_own_adam_is_repeated(trained, variant):
    trained("train_trajectory", variant)


@pytest.mark.parametrize("variant", variants("train_locked"))
def test_training_with_a_locked_encoder_is_repeated(trained, variant):
    trained("train_locked", variant)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the recordings in ../shared/golden_train, not here")
@pytest.mark.parametrize(
    ("file", "variant"), [("train_trajectory", "C_train_embedding"), ("train_locked", "locked_word_embed_trained")]
)
def test_all_weights_at_the_end_equal_the_recorded_ones(trained, file, variant):
    final = json.loads((FOLDER / f"{file}.json").read_text(encoding="utf-8"))["variants"][variant]["final"]
    # The true gradient of a key's bias is 0; Adam makes steps of its rounding noise.
    final = {name: kept for name, kept in final.items() if not name.endswith(("k_proj.bias", "pos_k_linear.bias"))}
    errors = beyond(allowed(file, variant), final_errors(trained(file, variant), final))
    # So it does of single weights behind a ReLU: of the thousands compared one may be off, by less than a step.
    assert len(errors) <= 1, errors
    assert all(error < 5e-4 for error in errors.values()), errors
