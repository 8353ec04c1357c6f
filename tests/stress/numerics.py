"""Half precision against the official code's recorded outputs, extreme activations, learning rates that explode."""

import copy
import math
import random
from pathlib import Path

import tiny_shop
import torch
from fixtures.recorded import Recording
from safetensors.torch import load_file
from stress import processes
from stress.pieces import Figures
from torch import Tensor, nn

from ofa_hf.cli import main as ofa_hf


# Deviation of the logits from the official float32 ones, in standard deviations of those: root mean square, largest.
# About twice what was measured. A float16 number has 11 bits, a bfloat16 number 8.
BOUNDS = {torch.float16: (0.003, 0.016), torch.bfloat16: (0.028, 0.14)}
LOSS_BOUNDS = {torch.float16: 0.002, torch.bfloat16: 0.02}  # of the mean loss, relative
GRADIENT_BOUNDS = {torch.float16: 0.9995, torch.bfloat16: 0.98}  # cosine with the float32 gradient of all weights
CASES = ("c06_textonly", "c08_codes_all", "c05b_nonsquare", "c05_nonsquare", "c04_img480", "c03_img384", "c02_padding")
SMALL = 64  # pixels; a float16 convolution takes long on a CPU
SCALED = {  # what grows with a factor on these weights
    "residuals": ("fc2.weight", "out_proj.weight"),
    "attention scores": ("q_proj.weight", "k_proj.weight"),
    "word embedding": ("encoder.embed_tokens.weight",),
    "image features": ("image_proj.weight",),
    "ResNet": ("embed_images.conv1.weight",),
}
FACTORS = {torch.float32: 6, torch.bfloat16: 6, torch.float16: 1}  # powers of ten, up and down


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------- precision


def precision(seed: int, amount: int, folder: Path) -> Figures:
    """`amount` recorded cases forward; gradients, training steps and extreme activations with small images."""
    chance, recording = random.Random(seed), Recording.load()
    model = recording.build_model()
    figures = {}
    for dtype in BOUNDS:
        deviations = [deviation(recording, model, case, dtype) for case in CASES[: 2 * amount]]
        rms, largest = (max(values) for values in zip(*deviations, strict=True))
        assert rms <= BOUNDS[dtype][0], f"{dtype}: logits deviate by {rms} standard deviations"
        assert largest <= BOUNDS[dtype][1], f"{dtype}: a logit deviates by {largest} standard deviations"
        batch = small_batch(recording, chance)
        figures[name_of(dtype)] = {
            "logits rms": round(rms, 5),
            "logits largest": round(largest, 4),
            **training(model, batch, dtype),
        }
    figures["extremes"] = extremes(model, small_batch(recording, chance), chance, rounds=6 * amount)
    return figures


def deviation(recording: Recording, model: nn.Module, case: str, dtype: torch.dtype) -> tuple[float, float]:
    """Deviation from the recorded logits, of the model in this dtype and under autocast, the worse of both."""
    values = torch.from_numpy(recording.recorded(f"{case}/logits")[1])
    worst = (0.0, 0.0)
    for logits in (
        logits_in(recording, half(model, dtype), case, dtype),
        logits_autocast(recording, model, case, dtype),
    ):
        assert torch.isfinite(logits).all(), f"{case}, {dtype}: not finite"
        found = logits.float().reshape(-1)[torch.from_numpy(recording.recorded(f"{case}/logits")[0])]
        difference, spread = found - values, logits.float().std().item()
        rms = difference.square().mean().sqrt().item() / spread
        worst = max(worst[0], rms), max(worst[1], difference.abs().max().item() / spread)
    return worst


def half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype)


@torch.no_grad()
def logits_in(recording: Recording, model: nn.Module, case: str, dtype: torch.dtype) -> Tensor:
    inputs = {**recording.encoder_inputs(case), **recording.decoder_inputs(case)}
    if inputs["pixel_values"] is not None:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return model(**inputs).logits


@torch.no_grad()
def logits_autocast(recording: Recording, model: nn.Module, case: str, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype):
        return model(**recording.encoder_inputs(case), **recording.decoder_inputs(case)).logits


def small_batch(recording: Recording, chance: random.Random) -> dict[str, Tensor]:
    """Two small images with random captions."""
    tokens = torch.tensor([[chance.randrange(4, 21132) for _ in range(9)] + [2] for _ in range(2)])
    generator = torch.Generator().manual_seed(chance.randrange(2**32))
    images = torch.rand(2, 3, SMALL, SMALL, generator=generator) * 2 - 1
    prompt = torch.tensor(recording.cases["c01_basic256"]["src"])[:1].expand(2, -1)
    return {"input_ids": prompt, "pixel_values": images, "labels": tokens}


def training(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype, steps: int = 3) -> dict[str, float]:
    """Loss and gradient under autocast against float32, then a few steps: all of it finite."""
    exact, (loss, gradient) = step(model, batch, torch.float32), step(model, batch, dtype)
    error = abs(loss / exact[0] - 1)
    cosine = nn.functional.cosine_similarity(exact[1], gradient, dim=0).item()
    assert error <= LOSS_BOUNDS[dtype], f"{dtype}: the loss is off by {error:.2%}"
    assert cosine >= GRADIENT_BOUNDS[dtype], f"{dtype}: the gradient's cosine is {cosine}"
    trained = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    losses = [step(trained, batch, dtype, optimizer)[0] for _ in range(steps)]
    assert losses[-1] < losses[0], losses
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())
    return {"loss off by": round(error, 5), "gradient cosine": round(cosine, 5)}


def step(model: nn.Module, batch: dict, dtype: torch.dtype, optimizer=None) -> tuple[float, Tensor]:
    """Loss and gradient of all weights; a float16 loss is scaled, as the Trainer does."""
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=1024.0)
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    scaler.scale(loss).backward()
    scale = scaler.get_scale()
    gradient = torch.cat(
        [weight.grad.float().flatten() / scale for weight in model.parameters() if weight.grad is not None]
    )
    assert math.isfinite(loss.item()), f"{dtype}: the loss is {loss.item()}"
    assert torch.isfinite(gradient).all(), f"{dtype}: the gradient is not finite"
    if optimizer is not None:
        scaler.step(optimizer)
        scaler.update()
    model.zero_grad()
    return loss.item(), gradient


def extremes(model: nn.Module, batch: dict[str, Tensor], chance: random.Random, rounds: int) -> dict[str, int | str]:
    """Weights scaled up and down so that activations become huge or tiny: the loss stays a number."""
    largest = 0.0
    for number in range(rounds):
        dtype, what = list(FACTORS)[number % len(FACTORS)], chance.choice(list(SCALED))
        power = chance.uniform(-FACTORS[dtype], FACTORS[dtype])
        loss = loss_with(model, batch, dtype, SCALED[what], 10**power)
        assert math.isfinite(loss), f"{dtype}: the loss is {loss} with {what} × 10^{power:.1f}"
        largest = max(largest, loss)
    return {"losses": rounds, "largest loss": round(largest, 1)}


@torch.no_grad()
def loss_with(model: nn.Module, batch: dict, dtype: torch.dtype, endings: tuple[str, ...], factor: float) -> float:
    scaled = copy.deepcopy(model)
    for name, weight in scaled.named_parameters():
        if name.endswith(endings):
            weight.mul_(factor)
    batch = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
    return scaled.to(dtype)(**batch).loss.item()


# --------------------------------------------------------------------------------------------- explosions


def explosions(seed: int, amount: int, folder: Path) -> Figures:
    """Runs whose learning rate explodes: stopped in one line, and no checkpoint holds a number that is none."""
    chance, stopped = random.Random(seed), 0
    shop = {**tiny_shop.write_shop(folder / "shop"), "disable_tqdm": True}
    for number in range(amount):
        place = folder / f"run-{number}"
        changes = {"learning_rate": 10 ** chance.uniform(4, 40), "max_grad_norm": chance.choice((0, 1.0))}
        changes |= {"save_steps": 1, "save_strategy": chance.choice(("steps", "steps", "no", "epoch"))}
        changes |= {"max_steps": chance.choice((1, 2, 5))}  # the last step may be the one that breaks it
        changes |= {"bf16": chance.random() < 0.3, "lr_scheduler_type": chance.choice(("constant", "linear"))}
        arguments = tiny_shop.write_arguments(folder / f"{number}.json", {**shop, **changes, "output_dir": str(place)})
        status = processes.run(lambda path=arguments: ofa_hf(["finetune", str(path)]), folder / f"{number}.log")
        last = processes.tail(folder / f"{number}.log", 1)
        assert status in (0, 1), f"seed {seed}, {changes}: {status}\n{processes.tail(folder / f'{number}.log')}"
        assert status == 0 or "training stopped" in last, f"seed {seed}, {changes}\n{last}"
        stopped += status
        check_folders(place, status, f"seed {seed}, {changes}")
    return {"runs": amount, "stopped": stopped, "came to their end with finite weights": amount - stopped}


def check_folders(place: Path, status: int, about: str) -> None:
    """Whatever was saved is finite; the model itself is there only if the run came to its end."""
    files = list(place.rglob("model.safetensors"))
    assert (place / "model.safetensors" in files) == (status == 0), f"{about}: {status}, {files}"
    for file in files:
        bad = [name for name, value in load_file(file).items() if not torch.isfinite(value).all()]
        assert not bad, f"{about}: {file} holds {bad[:3]}, which are not finite"
