"""What drawing costs: codes beside the plain way and beside words, as ratios within one run; memory over the steps.

    .venv/bin/python benchmarks/bench_drawing.py [--size tiny] [--json drawing.json]

A text becomes the 1,024 codes of an image of 256 × 256 pixels, one sample or sixteen, each code among the 256 best.
The plain way is the same network with torch's own kernels, transformers' loop, logits of all words, and a copy of the
text's encoder states for every sample; both are compared over the first steps, where the plain way is cheapest. A step
of words is one of a text that is sampled from the same model with as many rows. Weights are random. Memory is what the
process holds at the last step above what it held after the first ones.
"""

import argparse
import json
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bench_speed import SIZES, copied_encoder_states
from bench_training import resident
from limits import plain_torch, seconds
from transformers import GenerationMixin

from ofa_hf import OFAConfig, OFAForConditionalGeneration
from ofa_hf.boxes_ofa import CodesOnly
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE, images_of_codes


SIDE, SAMPLES, TOP_K = 256, 16, 256
PLAIN_STEPS, WORDS, WARM_STEPS = 96, 64, 4
VOCABULARY, FIRST_CODE, NUM_CODES, END = 59457, 50265, 8192, 2
PROMPT = [0, 99, 16, 5, 1498, 2274, 116, 3747, 35, 83, 6219, 2335, 1237, 420, 5, 7727, 6255, 4, 2]


class Enough(Exception):
    """Ends a run that has taken the steps it is measured by."""


class Watch:
    """A streamer that notes the time, and the memory at the first steps and the last.

    Args:
        steps: after which the run ends; None: at its own end.
    """

    def __init__(self, steps: int | None = None):
        self.steps, self.times, self.memory = steps, [], [0.0, 0.0]

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == WARM_STEPS + 1:
            self.memory[0] = resident("VmRSS")
        if self.steps is not None and len(self.times) > self.steps:
            raise Enough

    def end(self) -> None:
        self.memory[1] = resident("VmRSS")

    def seconds(self, steps: int | None = None) -> float:
        """Of so many steps, or of all; the first ones also make what is kept."""
        times = self.times if steps is None else self.times[: steps + 1]
        return times[-1] - times[0]

    def milliseconds_per_step(self, steps: int) -> float:
        """Without the first ones."""
        times = self.times[WARM_STEPS : steps + 1]
        return 1000 * (times[-1] - times[0]) / (len(times) - 1)


def make_model(size: str) -> OFAForConditionalGeneration:
    """An English model with a window of `SIDE` pixels, random."""
    torch.manual_seed(0)
    sizes = SIZES[size]
    sides = {f"{side}_layers": sizes["layers"] for side in ("encoder", "decoder")}
    sides |= {f"{side}_attention_heads": sizes["heads"] for side in ("encoder", "decoder")}
    sides |= {f"{side}_ffn_dim": 4 * sizes["d_model"] for side in ("encoder", "decoder")}
    common = {"d_model": sizes["d_model"], "resnet_type": sizes["resnet_type"], "vocab_size": VOCABULARY}
    return OFAForConditionalGeneration(OFAConfig(**common, **sides, code_image_size=SIDE)).eval()


def run(model, samples: int, watch: Watch, **settings: Any) -> Watch:
    """Sample from the text until the watch says enough; returns the watch."""
    inputs = {"input_ids": torch.tensor([PROMPT]), "do_sample": True, "top_k": TOP_K, "streamer": watch}
    with suppress(Enough):
        model.generate(**inputs, num_return_sequences=samples, **settings)
    return watch


def draw(model, samples: int, steps: int | None = None) -> Watch:
    """The codes of images, as drawing samples them."""
    length = (SIDE // PIXELS_PER_CODE) ** 2
    codes = CodesOnly(FIRST_CODE, NUM_CODES, length, END)
    settings = {"logits_processor": [codes], "max_length": length + 2}
    return run(model, samples, Watch(steps), code_masks=torch.tensor([True]), **settings)


def draw_plain(model, samples: int, steps: int) -> Watch:
    """The same with nothing of this package but the network."""
    ours = type(model)._sample
    type(model)._sample = GenerationMixin._sample
    try:
        with plain_torch(), copied_encoder_states(model):
            expand = model._expand_inputs_for_generation

            def with_masks(expand_size=1, is_encoder_decoder=True, input_ids=None, **kwargs):
                kwargs["code_masks"] = kwargs["code_masks"].repeat_interleave(expand_size, dim=0)
                return expand(expand_size, is_encoder_decoder, input_ids, **kwargs)

            model._expand_inputs_for_generation = with_masks
            return draw(model, samples, steps)
    finally:
        type(model)._sample = ours


def write_words(model, samples: int) -> Watch:
    """Texts of as many rows."""
    return run(model, samples, Watch(), min_length=WORDS + 1, max_length=WORDS + 1)


def measure(model, samples: int) -> dict[str, Any]:
    """A row of the table."""
    steps = min(PLAIN_STEPS, (SIDE // PIXELS_PER_CODE) ** 2)
    words, plain, own = write_words(model, samples), draw_plain(model, samples, steps), draw(model, samples)
    name = f"{'one image' if samples == 1 else f'{samples} samples'}, {str(model.dtype)[6:]}"
    return {
        "name": name,
        "seconds": own.seconds(),
        "step": own.milliseconds_per_step(len(own.times)),
        "ratio": plain.milliseconds_per_step(steps) / own.milliseconds_per_step(steps),
        "of_words": own.milliseconds_per_step(min(WORDS, steps)) / words.milliseconds_per_step(WORDS),
        "growth": own.memory[1] - own.memory[0],
    }


def measure_decoding() -> dict[str, Any]:
    """Codes into an image, with a VQGAN of the published size."""
    from diffusers import VQModel

    levels = (128, 128, 256, 512)
    vqgan = VQModel(
        block_out_channels=levels,
        layers_per_block=2,
        down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
        latent_channels=256,
        vq_embed_dim=256,
        num_vq_embeddings=NUM_CODES,
        lookup_from_codebook=True,
    ).eval()
    side = SIDE // PIXELS_PER_CODE
    codes = torch.randint(0, NUM_CODES, (1, side, side))
    return {"name": "codes into an image", "seconds": min(seconds(lambda: images_of_codes(vqgan, codes), 2))}


def show(row: dict[str, Any]) -> dict[str, Any]:
    text = f"{row['name']:24} {row['seconds']:7.1f} s"
    if "step" in row:
        text += f" {row['step']:7.1f} ms a step, {row['ratio']:5.1f} × the plain way, "
        text += f"{row['of_words']:5.2f} of a step of words, {row['growth']:+6.0f} MiB"
    if "images" in row:
        text += f"; {row['images']:.1f} × one image"
    print(text, flush=True)
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    print(f"Drawing {SIDE} × {SIDE} pixels, {args.size}, {torch.get_num_threads()} threads")
    model, rows = make_model(args.size), []
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        one = show(measure(model, 1))
        many = measure(model, SAMPLES)
        rows += [one, show(many | {"images": many["seconds"] / one["seconds"]})]
    if find_spec("diffusers"):
        rows.append(show(measure_decoding()))
    if args.json:
        facts = {"size": args.size, "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
