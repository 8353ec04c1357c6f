"""`OFAConfig` of a checkpoint: sizes are read from the tensors, and arguments must agree with them.

Source: OFA `models/ofa/unify_transformer.py` (arguments), `models/ofa/ofa.py` (architectures and defaults).
"""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ofa_hf.configuration_ofa import FIXED_SWITCHES, RESNET_BLOCKS, UNUSED_FIELDS, OFAConfig
from ofa_hf.errors import UserError
from ofa_hf.inert_pickle import shown


FAIRSEQ_FIELDS = {  # fairseq argument → our field; several arguments can stand for one field
    "encoder_embed_dim": "d_model",
    "decoder_embed_dim": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "max_source_positions": "max_position_embeddings",
    "max_target_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "resnet_type": "resnet_type",
    "token_bucket_size": "token_bucket_size",
    "image_bucket_size": "image_bucket_size",
    "code_image_size": "code_image_size",
    "attn_scale_factor": "attn_scale_factor",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "encoder_drop_path_rate": "encoder_drop_path_rate",
    "decoder_drop_path_rate": "decoder_drop_path_rate",
    "resnet_drop_path_rate": "resnet_drop_path_rate",
}
FAIRSEQ_SWITCHES = {  # arguments that select the implemented network; tensors do not show all of them
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
    "scale_attn": True,
    "scale_fc": True,
    "scale_heads": True,
    "scale_resids": False,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "entangle_position_embedding": False,
    "disable_entangle": True,
    "interpolate_position": False,
    "activation_fn": "gelu",
    "no_token_positional_embeddings": False,
    "cross_self_attention": False,
    "no_cross_attention": False,
    "adapter": False,
    "encoder_prompt": False,
    "decoder_prompt": False,
}
LEGACY_BOOKKEEPING = frozenset(UNUSED_FIELDS) | frozenset(  # written by transformers 4.20, not read by any network
    "architectures auto_map custom_pipelines dtype torch_dtype transformers_version model_type _name_or_path "
    "forced_eos_token_id forced_bos_token_id max_length min_length num_beams early_stopping "
    "no_repeat_ngram_size".split()
)
SIZE_NAMES = {  # d_model, encoder layers, decoder layers
    (256, 4, 4): "tiny",
    (512, 4, 4): "medium",
    (768, 6, 6): "base",
    (1024, 12, 12): "large",
    (1280, 24, 12): "huge",
}
MAX_LAYERS = 1000


@dataclass
class ConfigDecisions:
    """The configuration and the origin of each field, for the report."""

    config: OFAConfig
    from_shapes: list[str] = field(default_factory=list)  # read from the tensors, without an argument
    confirmed: list[str] = field(default_factory=list)  # argument and tensors agree
    from_settings: list[str] = field(default_factory=list)  # from an argument, not visible in tensors
    defaults: list[str] = field(default_factory=list)  # neither in tensors nor in arguments
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> str:
        """Published name of these sizes, or `custom`."""
        config = self.config
        return SIZE_NAMES.get((config.d_model, config.encoder_layers, config.decoder_layers), "custom")


def config_from_fairseq(settings: Mapping[str, Any], shapes: Mapping[str, tuple], source: str) -> ConfigDecisions:
    """Configuration of an official checkpoint.

    Args:
        settings: fairseq's arguments as plain values; may be empty.
        shapes: our names → shapes of the weights.

    Raises:
        UserError: weights that are not an OFA network, arguments that contradict them, or another variant of OFA.
    """
    for name, expected in FAIRSEQ_SWITCHES.items():
        if settings.get(name, expected) not in (expected, None):
            refuse_variant(name, settings[name], expected, source)
    said = [
        (name, field_, settings[name]) for name, field_ in FAIRSEQ_FIELDS.items() if settings.get(name) is not None
    ]
    decisions = decide(said, shapes, source)
    if settings and settings.get("disable_entangle") is None:
        decisions.notes.append(
            "the settings do not mention disable_entangle; assumed to be set, as in every caption script"
        )
    if not settings:
        decisions.notes.append("the file holds no settings: sizes come from the weights, rates are defaults")
    return decisions


def config_from_legacy(values: Mapping[str, Any], shapes: Mapping[str, tuple], source: str) -> ConfigDecisions:
    """Configuration of a legacy OFA folder: its `config.json`, checked against the weights.

    Raises:
        UserError: as `config_from_fairseq`, or another `model_type`.
    """
    if values.get("model_type", "ofa") != "ofa":
        raise UserError(f"{source} is a model of type {shown(values['model_type'])}. This converter knows ofa only.")
    for name, expected in FIXED_SWITCHES.items():
        if values.get(name, expected) != expected:
            refuse_variant(name, values[name], expected, source)
    fields = set(inspect.signature(OFAConfig.__init__).parameters) - {"self", "kwargs"} - LEGACY_BOOKKEEPING
    said = [(name, name, value) for name, value in values.items() if name in fields and value is not None]
    decisions = decide(said, shapes, source)
    unknown = sorted(set(values) - fields - LEGACY_BOOKKEEPING - set(FIXED_SWITCHES))
    if unknown:
        decisions.notes.append(
            f"left out fields of config.json that OFA does not read: {', '.join(map(shown, unknown))}"
        )
    return decisions


def refuse_variant(name: str, value: Any, expected: Any, source: str) -> None:
    raise UserError(
        f"{source} was trained with {name}={shown(value)}, which is another variant of OFA. Accepted: "
        f"{name}={expected}, as every published checkpoint has it. Use the official code for that variant."
    )


def decide(said: list[tuple[str, str, Any]], shapes: Mapping[str, tuple], source: str) -> ConfigDecisions:
    """Combine settings, as (setting, field, value), with the fields read from the tensors."""
    measured = fields_from_shapes(shapes, source)
    values, confirmed, from_settings = dict(measured), set(), set()
    for name, field_, value in said:
        value = as_field_type(name, field_, value, source)
        if values.setdefault(field_, value) != value:
            other = "the weights have" if field_ in measured else "another setting says"
            raise UserError(
                f"The settings of {source} say {name}={shown(value)}, but {other} {field_}={shown(values[field_])}. "
                f"The file was assembled from two networks, or its settings were edited; use the original file."
            )
        (confirmed if field_ in measured else from_settings).add(field_)
    values.setdefault("code_image_size", min(128, 8 * values["image_bucket_size"]))
    try:
        config = OFAConfig(**values)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    default = set(FAIRSEQ_FIELDS.values()) - set(measured) - {field_ for _, field_, _ in said}
    return ConfigDecisions(
        config, sorted(set(measured) - confirmed), sorted(confirmed), sorted(from_settings), sorted(default)
    )


def as_field_type(name: str, field_: str, value: Any, source: str) -> Any:
    """`value` in the type of the field's default; an integer is accepted for a float."""
    default = inspect.signature(OFAConfig.__init__).parameters[field_].default
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 2**31 else value
    usable = type(value) is type(default) and (not isinstance(value, float) or math.isfinite(value))
    if not usable or (type(value) is int and abs(value) >= 2**31):
        raise UserError(
            f"The settings of {source} say {name}={shown(value)}; expected a {type(default).__name__} "
            f"such as {default}. The file is damaged or belongs to another network."
        )
    return value


def fields_from_shapes(shapes: Mapping[str, tuple], source: str) -> dict[str, Any]:
    """The fields that follow from the weights, whose names are ours, as from `rename_key`.

    Raises:
        UserError: a weight that every OFA network has is absent or impossible.
    """
    vocab_size, d_model = shape_of(shapes, "encoder.embed_tokens.weight", 2, source)
    fields = {"vocab_size": vocab_size, "d_model": d_model, "resnet_type": resnet_type_of(shapes, source)}
    positions = shape_of(shapes, "encoder.embed_positions.weight", 2, source)[0] - 2
    fields["max_position_embeddings"] = positions
    cells = shape_of(shapes, "encoder.embed_image_positions.weight", 2, source)[0] - 1
    fields["image_bucket_size"] = math.isqrt(max(cells, 0))
    buckets = shape_of(shapes, "encoder.token_rel_pos_table_list.0.weight", 2, source)[0]
    fields["token_bucket_size"] = (buckets + 1) // 2
    for side in ("encoder", "decoder"):
        fields[f"{side}_layers"] = count_layers(shapes, f"{side}.layers.", source)
        first = f"{side}.layers.0"
        fields[f"{side}_attention_heads"] = shape_of(shapes, f"{first}.self_attn.c_attn", 1, source)[0]
        fields[f"{side}_ffn_dim"] = shape_of(shapes, f"{first}.fc1.weight", 2, source)[0]
    return fields


def shape_of(shapes: Mapping[str, tuple], name: str, dimensions: int, source: str) -> tuple[int, ...]:
    """Shape of a weight that every OFA network has."""
    shape = shapes.get(name)
    if shape is None:
        raise UserError(
            f"{source} is not an OFA checkpoint: it has no weight {name}. Accepted: official OFA .pt files and legacy "
            f"OFA-Chinese folders. Check that this is the file you mean."
        )
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(f"The weight {name} of {source} has shape {list(shape)}; expected {dimensions} dimensions.")
    return tuple(shape)


def count_layers(shapes: Mapping[str, tuple], prefix: str, source: str) -> int:
    """Number of consecutive layers whose names start with `prefix`, from 0."""
    pattern = re.compile(re.escape(prefix) + r"(0|[1-9]\d{0,3})\.")
    numbers = {int(match[1]) for match in map(pattern.match, shapes) if match}
    if not numbers or len(numbers) != max(numbers) + 1 or len(numbers) > MAX_LAYERS:
        missing = min(set(range(len(numbers) + 1)) - numbers)
        raise UserError(f"Missing weights in {source}: {prefix}{missing}.*. Pass the complete checkpoint.")
    return len(numbers)


def resnet_type_of(shapes: Mapping[str, tuple], source: str) -> str:
    """Name of the image trunk, from the number of blocks in its three stages."""
    if "encoder.embed_tokens.weight" in shapes and not any(
        name.startswith("encoder.embed_images.") for name in shapes
    ):
        raise UserError(
            f"{source} has no image part (no weights encoder.embed_images.*): it is a language model for text only. "
            f"Accepted: networks that read images, as every finetuned and pretrained OFA checkpoint is."
        )
    prefix = "encoder.embed_images.layer"
    blocks = tuple(count_layers(shapes, f"{prefix}{stage}.", source) for stage in (1, 2, 3))
    for name, known in RESNET_BLOCKS.items():
        if known == blocks:
            return name
    raise UserError(
        f"The image trunk of {source} has {list(blocks)} blocks. Accepted: "
        f"{', '.join(f'{list(known)} ({name})' for name, known in RESNET_BLOCKS.items())}."
    )
