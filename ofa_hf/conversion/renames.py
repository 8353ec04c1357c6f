"""Official weight names → our names, with an exact account: nothing missing and nothing left over.

Source: OFA `models/ofa/unify_transformer.py` and `unify_transformer_layer.py` against the keys of OFA-Chinese files.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.errors import UserError
from ofa_hf.inert_pickle import shown
from ofa_hf.modeling_ofa_positions import code_position_ids, image_position_buckets, token_position_buckets


SEGMENT_RENAMES = {  # whole segments of a dotted name
    "encoder_attn": "cross_attn",
    "encoder_attn_layer_norm": "cross_attn_layer_norm",
    "attn_ln": "self_attn_mid_layer_norm",  # encoder layers
    "self_attn_ln": "self_attn_mid_layer_norm",  # decoder layers
    "cross_attn_ln": "cross_attn_mid_layer_norm",
    "ffn_layernorm": "ffn_layer_norm",
}
DROPPED_KEYS = frozenset({"encoder.version", "decoder.version"})  # format numbers of fairseq, not weights
TIED_KEYS = {  # one tensor under three names; the first is saved
    "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
    "decoder.output_projection.weight": "encoder.embed_tokens.weight",
}
COUNTER = "num_batches_tracked"  # BatchNorm's step counter; missing if the trunk was frozen (FrozenBatchNorm)
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Weights known to be unsupported, by a part of their name, and what to do about them.
HINTS = {
    "adapter": "adapter checkpoints must be merged first",
    "lora_": "LoRA weights must be merged first",
    "prompt_encoder": "prompt-tuned checkpoints need the official code",
    "classification_heads": "remove the classification heads or take a checkpoint without them",
    "w_resid": "scaled residuals (--scale-resids) are another network",
    "layer4": "a ResNet of four stages is another network",
    "vit": "a vision transformer as image trunk is another network",
    "phone": "MMSpeech is another network",
    "audio": "MMSpeech is another network",
}


@dataclass
class WeightAccount:
    """What happened to each tensor of the source; each is in exactly one of the lists."""

    renamed: dict[str, str] = field(default_factory=dict)  # official name → our name
    kept: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)  # equal to another tensor, which is saved instead
    recomputed: list[str] = field(default_factory=list)  # index tables, equal to what the model computes
    dropped: list[str] = field(default_factory=list)  # format numbers
    filled: list[str] = field(default_factory=list)  # step counters missing in the source: 0, no output uses them


def rename_key(key: str) -> str:
    """Our name of an official weight; names of legacy files are unchanged."""
    return ".".join(SEGMENT_RENAMES.get(segment, segment) for segment in key.split("."))


def recomputed_tables(config: OFAConfig) -> dict[str, Callable[[torch.Size], torch.Tensor]]:
    """Index tables in old files: name → function that computes the table for the stored shape."""

    def token_table(_shape: torch.Size) -> torch.Tensor:
        length = config.max_position_embeddings
        positions = torch.arange(length)
        buckets = token_position_buckets(config.token_bucket_size, length)
        return buckets[positions[:, None] - positions + length - 1]

    def image_table(_shape: torch.Size) -> torch.Tensor:
        positions = torch.arange(config.image_bucket_size**2 + 1)
        return image_position_buckets(positions, positions, config.image_bucket_size)

    def code_table(shape: torch.Size) -> torch.Tensor:  # official files have two entries more than positions, legacy 1
        length = shape[0] if len(shape) == 1 else 0
        return code_position_ids(config.code_image_size, config.image_bucket_size, length)

    tables = {f"{side}.token_rp_bucket": token_table for side in ("encoder", "decoder")}
    tables |= {f"{side}.image_rp_bucket": image_table for side in ("encoder", "decoder")}
    return tables | {"decoder.image_position_idx": code_table}


def match_weights(
    weights: Mapping[str, Any], expected: Mapping[str, torch.Size], config: OFAConfig, source: str
) -> tuple[dict[str, Any], WeightAccount]:
    """Match every weight to its name in the network, or refuse the file.

    Args:
        weights: official or legacy names → tensors with `dtype`, `shape` and `load()`.
        expected: names → shapes of the model's `state_dict`.
        source: the file, for messages.

    Returns:
        our names → tensors of `weights`, tied ones once; and the account of every source tensor. A BatchNorm
        counter that the source lacks is left out of the dictionary and named in `filled`.

    Raises:
        UserError: unknown, doubled, missing or misshapen weights, tied names with different numbers, or index tables
            that differ from what the model computes.
    """
    account, matched = WeightAccount(), {}
    tables = recomputed_tables(config)
    origin = {}
    for key, tensor in weights.items():
        if key in DROPPED_KEYS:
            account.dropped.append(key)
        elif key in tables:
            check_table(key, tensor, tables[key], source)
            account.recomputed.append(key)
        else:
            name = rename_key(key)
            if name in matched:
                raise UserError(
                    f"{source} holds {shown(origin[name])} and {shown(key)}, which are the same weight here."
                )
            matched[name], origin[name] = tensor, key
    refuse_unknown([origin[name] for name in matched if name not in expected], source)
    account.filled = refuse_missing(expected, matched, source)
    check_shapes(matched, expected, origin, source)
    account.tied = merge_tied(matched, origin, source)
    for name in matched:
        if name == origin[name]:
            account.kept.append(name)
        else:
            account.renamed[origin[name]] = name
    return matched, account


def check_table(key: str, tensor: Any, compute: Callable[[torch.Size], torch.Tensor], source: str) -> None:
    """Refuse an index table that is not the one the model computes."""
    expected = compute(tensor.shape)
    if tensor.dtype.is_floating_point or tensor.shape != expected.shape or not torch.equal(tensor.load(), expected):
        raise UserError(
            f"The index table {key} of {source} ({tensor.dtype}, {list(tensor.shape)}) is not the one that "
            f"OFA computes for these sizes ({list(expected.shape)}). Positions would be looked up elsewhere than in "
            f"training; use the code that wrote the file."
        )


def refuse_unknown(unknown: list[str], source: str) -> None:
    """Refuse weights that the network does not have, with a hint if their name is known."""
    if unknown:
        hint = next((hint for key in unknown for piece, hint in HINTS.items() if piece in key.lower()), None)
        raise UserError(
            f"Unknown weights in {source}: {some_of(unknown)}. This converter knows OFA tiny, medium, base, large and "
            f"huge as published; {hint or 'convert a checkpoint of one of these'}."
        )


def refuse_missing(expected: Iterable[str], matched: Mapping[str, Any], source: str) -> list[str]:
    """Refuse a file without all weights; returns the step counters that may be absent."""
    absent = [name for name in expected if name not in matched and matched.get(TIED_KEYS.get(name)) is None]
    missing = [name for name in absent if not name.endswith(COUNTER)]
    if missing:
        raise UserError(
            f"Missing weights in {source}: {some_of(missing)}. Nothing is filled with random numbers here; "
            f"give the complete checkpoint."
        )
    return absent


def check_shapes(matched: Mapping[str, Any], expected: Mapping[str, torch.Size], origin: dict, source: str) -> None:
    """Refuse weights of another shape or of a type that a weight cannot have."""
    for name, tensor in matched.items():
        is_counter = name.endswith(COUNTER)
        accepted = (torch.int64,) if is_counter else WEIGHT_DTYPES
        if tensor.shape != expected[name] or tensor.dtype not in accepted:
            raise UserError(
                f"The weight {origin[name]} of {source} is {tensor.dtype}, {list(tensor.shape)}; expected "
                f"{'int64' if is_counter else 'float32, float16 or bfloat16'}, {list(expected[name])}. "
                f"The file is damaged or of another network."
            )


def merge_tied(matched: dict[str, Any], origin: Mapping[str, str], source: str) -> dict[str, str]:
    """Remove tied names from `matched` after comparing them; returns official name → saved name."""
    tied = {}
    for name, target in TIED_KEYS.items():
        tensor = matched.pop(name, None)
        if tensor is None:
            continue
        if not tensor.same_place(matched[target]) and not torch.equal(tensor.load(), matched[target].load()):
            raise UserError(
                f"{origin[name]} and {origin[target]} of {source} differ, but OFA shares one tensor between input and "
                f"output embeddings. The file was trained with another architecture or is damaged."
            )
        tied[origin[name]] = target
    return tied


def some_of(names: list[str]) -> str:
    """The first name and how many more: `encoder.version (+11)`."""
    return shown(names[0]) + (f" (+{len(names) - 1})" if len(names) > 1 else "")
