"""How fast captioning is: the default path compared to a baseline, as ratios within one run.

    .venv/bin/python benchmarks/bench_speed.py [--size tiny] [--repeats 3] [--json results.json]

The baseline ("plain") is the same network with torch's own kernels, BatchNorm not folded, and one copy of an image's
encoder states for every beam. Weights are random, captions have exactly 20 tokens, the prompt has 10. The limits of
the machine (a large product, reading memory) are measured in the same run, and the last column is the percentage of
them that a row reaches. transformers' BLIP of a similar size is measured with the same image, beams and length, int8
where torchao is installed.
"""

import argparse
import json
import platform
import statistics
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import torch
from limits import Machine, plain_torch, seconds
from transformers import BlipConfig, BlipForConditionalGeneration

from ofa_hf import OFAConfig, OFAForConditionalGeneration
from ofa_hf.export.int8 import int8_config
from ofa_hf.generation_ofa import OFAEncoderOutput


SIZES = {
    "tiny": {"d_model": 256, "layers": 4, "heads": 4, "resnet_type": "resnet50"},
    "base": {"d_model": 768, "layers": 6, "heads": 12, "resnet_type": "resnet101"},
}
IMAGE, BEAMS, TOKENS, CAPTIONS, CAPTION_TOKENS = 256, 5, 20, 10, 25
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


def prompts(number: int) -> torch.Tensor:
    return torch.tensor([PROMPT]).expand(number, -1)


def caption(model, pixel_values) -> torch.Tensor:
    settings = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1, "no_repeat_ngram_size": 3}
    return model.generate(input_ids=prompts(len(pixel_values)), pixel_values=pixel_values, **settings)


def caption_plain(model, pixel_values) -> torch.Tensor:
    """The same tokens with the baseline: encoder states copied for every beam, torch's kernels, nothing folded."""
    input_ids = prompts(len(pixel_values))
    with torch.no_grad(), plain_torch():
        encoded = model.get_encoder()(input_ids=input_ids, pixel_values=pixel_values)
        with copied_encoder_states(model):
            settings = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1}
            return model.generate(input_ids=input_ids, encoder_outputs=encoded, no_repeat_ngram_size=3, **settings)


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


def in_int8(model) -> OFAForConditionalGeneration:
    """The same with the layers' weights in int8 and the rest in bfloat16, as `ofa-hf export --format int8` has it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return OFAForConditionalGeneration.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=int8_config()
        )


def make_blip() -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": IMAGE})).eval()


def caption_blip(model, pixel_values) -> torch.Tensor:
    input_ids = torch.full((len(pixel_values), 2), 30522)
    settings = {"num_beams": BEAMS, "min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    return model.generate(pixel_values=pixel_values, input_ids=input_ids, **settings)


class Table:
    """Rows of a name, seconds, a ratio with its spread, and the share of the machine's limit."""

    def __init__(self):
        self.rows = []

    def add(self, name: str, fast: list[float], slow=None, items: int = 1, limit: float | None = None) -> None:
        """A row: times, those it is compared with, images of a run, and seconds that the machine needs at least."""
        ratios = sorted(b / a for a, b in zip(fast, cycle(slow or fast)))
        middle = statistics.median(fast)
        row = {"name": name, "milliseconds": 1000 * middle, "per_second": items / middle}
        if slow:
            row |= {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
        if limit:
            row["share_of_limit"] = limit / middle
        self.rows.append(row)
        spread = f"{row['ratio']:6.1f} × ({row['lowest']:.1f}–{row['highest']:.1f})" if slow else ""
        share = f"{row['share_of_limit']:6.0%} of the limit" if limit else ""
        print(f"{name:44} {1000 * middle:9.0f} ms {row['per_second']:8.2f}/s {spread:20}{share}".rstrip(), flush=True)


def measure(size: str, repeats: int) -> dict:
    """Print the table row by row; returns the machine's limits, whether the tokens are the same, and the rows."""
    model, table, machine = make_model(size), Table(), Machine()
    one, eight = torch.randn(1, 3, IMAGE, IMAGE), torch.randn(8, 3, IMAGE, IMAGE)
    found_limits = machine.show()

    def ours(what: str, network, pixel_values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        number = len(pixel_values)
        inputs = {"input_ids": prompts(number), "pixel_values": pixel_values}
        limit = dtype and machine.seconds_to_caption(network, inputs, BEAMS, TOKENS)
        name = f"captioning, {'one image' if number == 1 else f'batch of {number}'}{what}"
        table.add(name, seconds(lambda: caption(network, pixel_values), repeats), plain[number], number, limit)

    same = torch.equal(caption(model, eight), caption_plain(model, eight))
    print(f"float32 tokens of both paths are {'equal' if same else 'DIFFERENT'}")
    plain = {len(x): seconds(lambda x=x: caption_plain(model, x), repeats) for x in (one, eight)}
    for pixel_values, name in ((one, "one image"), (eight, "batch of 8")):
        table.add(f"captioning, {name}, plain", plain[len(pixel_values)], items=len(pixel_values))
        ours("", model, pixel_values, torch.float32)
    model.bfloat16()
    for pixel_values in (one, eight):
        ours(", bfloat16", model, pixel_values.bfloat16(), torch.bfloat16)
    if find_spec("torchao"):
        small = in_int8(model)
        for pixel_values in (one, eight):
            ours(", int8", small, pixel_values.bfloat16())
    if size == "base":
        blip = make_blip()
        table.add("BLIP-base of transformers, one image", seconds(lambda: caption_blip(blip, one), repeats))
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
