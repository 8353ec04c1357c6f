"""How fast captioning is, as ratios within one run: our default path against our plain one.

    .venv/bin/python benchmarks/bench_speed.py [--size tiny] [--repeats 3] [--json results.json]

Plain means what the same network costs without the work that went into speed: torch's own kernels, BatchNorm not
folded, one copy of a picture's encoder states for every beam. Weights are random; every caption has exactly 20 tokens;
the prompt has 10. The limits of the machine (a large product, a convolution, a copy in
memory) are measured in the same run, and transformers' BLIP of like size with the same picture, beams and length. int8
is measured where torchao is installed.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

from ofa_hf import OFAConfig, OFAForConditionalGeneration
from ofa_hf.export.int8 import int8_config
from ofa_hf.modeling_ofa import OFAEncoderOutput
from ofa_hf.modeling_ofa_kernels import plain_kernels


SIZES = {
    "tiny": {"d_model": 256, "layers": 4, "heads": 4, "resnet_type": "resnet50"},
    "base": {"d_model": 768, "layers": 6, "heads": 12, "resnet_type": "resnet101"},
}
PICTURE, BEAMS, TOKENS, CAPTIONS, CAPTION_TOKENS = 256, 5, 20, 10, 25
PROMPT = [0, 1749, 4279, 2993, 6839, 753, 788, 724, 140, 2]


def make_model(size: str) -> OFAForConditionalGeneration:
    torch.manual_seed(0)
    sizes = SIZES[size]
    sides = {f"{side}_{what}": sizes[what] for side in ("encoder", "decoder") for what in ("layers",)}
    sides |= {f"{side}_attention_heads": sizes["heads"] for side in ("encoder", "decoder")}
    sides |= {f"{side}_ffn_dim": 4 * sizes["d_model"] for side in ("encoder", "decoder")}
    return OFAForConditionalGeneration(
        OFAConfig(d_model=sizes["d_model"], resnet_type=sizes["resnet_type"], **sides)
    ).eval()


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each run, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def caption(model, pixel_values) -> torch.Tensor:
    prompts = torch.tensor([PROMPT]).expand(len(pixel_values), -1)
    settings = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1, "no_repeat_ngram_size": 3}
    return model.generate(input_ids=prompts, pixel_values=pixel_values, **settings)


def caption_plain(model, pixel_values) -> torch.Tensor:
    """The same tokens the plain way: encoder states copied for every beam, torch's kernels, nothing folded."""
    prompts = torch.tensor([PROMPT]).expand(len(pixel_values), -1)
    with torch.no_grad(), plain_kernels():
        encoded = model.get_encoder()(input_ids=prompts, pixel_values=pixel_values)
        with copied_encoder_states(model):
            settings = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1}
            return model.generate(input_ids=prompts, encoder_outputs=encoded, no_repeat_ngram_size=3, **settings)


@contextmanager
def copied_encoder_states(model):
    """Expand encoder states over beams, and reorder their keys and values with them, as other models do."""

    def expand(expand_size=1, is_encoder_decoder=True, input_ids=None, **kwargs):
        encoded = kwargs["encoder_outputs"]
        states = encoded.last_hidden_state.repeat_interleave(expand_size, dim=0)
        kwargs["encoder_outputs"] = OFAEncoderOutput(states, encoded.position_embeddings, encoded.attention_mask)
        return input_ids.repeat_interleave(expand_size, dim=0), kwargs

    def reorder(cache, beam_idx):
        cache.reorder_cache(beam_idx)
        return cache

    model._expand_inputs_for_generation, model._reorder_cache = expand, reorder
    try:
        yield
    finally:
        del model._expand_inputs_for_generation, model._reorder_cache


def limits(repeats: int) -> dict[str, float]:
    """Best of a few: GFLOP/s of a product in both precisions and of a convolution, GB/s of a copy."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    x, weight = torch.randn(8, 256, 32, 32), torch.randn(256, 256, 3, 3)
    block, target = torch.zeros(64 * 2**20), torch.zeros(64 * 2**20)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    convolution = 2 * 8 * 256 * 256 * 9 * 32 * 32 / 1e9
    return {
        "product float32, GFLOP/s": 2 * 1024**3 / 1e9 / min(seconds(lambda: a @ b, repeats)),
        "product bfloat16, GFLOP/s": 2 * 1024**3 / 1e9 / min(seconds(lambda: half_a @ half_b, repeats)),
        "convolution float32, GFLOP/s": convolution
        / min(seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), repeats)),
        "copy, GB/s": 2 * block.nbytes / 1e9 / min(seconds(lambda: target.copy_(block), repeats)),
    }


def in_int8(model) -> OFAForConditionalGeneration:
    """The same with the layers' weights in int8 and the rest in bfloat16, as `ofa-hf export --format int8` has it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return OFAForConditionalGeneration.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=int8_config()
        )


def make_blip() -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": PICTURE})).eval()


def caption_blip(model, pixel_values) -> torch.Tensor:
    prompts = torch.full((len(pixel_values), 2), 30522)
    settings = {"num_beams": BEAMS, "min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    return model.generate(pixel_values=pixel_values, input_ids=prompts, **settings)


class Table:
    """Rows of a name, seconds and a ratio with its spread."""

    def __init__(self):
        self.rows = []

    def add(self, name: str, fast: list[float], slow: list[float] | None = None, items: int = 1) -> None:
        ratios = sorted(b / a for a, b in zip(fast, slow or fast, strict=True))
        row = {
            "name": name,
            "milliseconds": 1000 * statistics.median(fast),
            "per_second": items / statistics.median(fast),
        }
        if slow:
            row |= {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
        self.rows.append(row)
        spread = f"{row['ratio']:6.1f} × ({row['lowest']:.1f}–{row['highest']:.1f})" if slow else ""
        print(f"{name:58} {row['milliseconds']:9.0f} ms {row['per_second']:8.2f}/s {spread}", flush=True)


def measure(size: str, repeats: int) -> dict:
    """Print the table row by row; returns the machine's limits, whether the tokens are the same, and the rows."""
    model, table = make_model(size), Table()
    one, eight = torch.randn(1, 3, PICTURE, PICTURE), torch.randn(8, 3, PICTURE, PICTURE)
    found_limits = limits(repeats)
    for name, value in found_limits.items():
        print(f"{name:58} {value:9.0f}")

    same = torch.equal(caption(model, eight), caption_plain(model, eight))
    print(f"float32 tokens of both paths are {'equal' if same else 'DIFFERENT'}")
    plain = {count: seconds(lambda x=x: caption_plain(model, x), repeats) for count, x in ((1, one), (8, eight))}
    table.add("captioning, one picture, plain", plain[1])
    table.add("captioning, one picture", seconds(lambda: caption(model, one), repeats), plain[1])
    table.add("captioning, batch of 8, plain", plain[8], items=8)
    table.add("captioning, batch of 8", seconds(lambda: caption(model, eight), repeats), plain[8], items=8)
    model.bfloat16()
    half_one, half_eight = one.bfloat16(), eight.bfloat16()
    table.add("captioning, one picture, bfloat16", seconds(lambda: caption(model, half_one), repeats), plain[1])
    table.add("captioning, batch of 8, bfloat16", seconds(lambda: caption(model, half_eight), repeats), plain[8], 8)
    if find_spec("torchao"):
        small = in_int8(model)
        table.add("captioning, one picture, int8", seconds(lambda: caption(small, half_one), repeats), plain[1])
        table.add("captioning, batch of 8, int8", seconds(lambda: caption(small, half_eight), repeats), plain[8], 8)
    if size == "base":
        blip = make_blip()
        blip_times = seconds(lambda: caption_blip(blip, one), repeats)
        table.add("BLIP-base of transformers, one picture", blip_times)
    return {"limits": found_limits, "same_tokens": same, "rows": table.rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    facts = {"size": args.size, "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts["machine"] = platform.processor() or platform.machine()
    print(f"Captioning, {args.size}, {facts['threads']} threads")
    found = measure(args.size, args.repeats)
    if args.json:
        args.json.write_text(json.dumps({**facts, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
