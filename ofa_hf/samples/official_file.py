"""A model as files of the official code: what `ofa-hf convert` reads, the other way round."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofa_hf.conversion.renames import SEGMENT_RENAMES, recomputed_tables
from ofa_hf.conversion.vocabulary import NUM_CODES
from ofa_hf.conversion.vqgan import name_in_official_vqgan
from ofa_hf.modeling_ofa import OFAForConditionalGeneration


DECODER_ONLY = {"encoder_attn", "encoder_attn_layer_norm", "self_attn_ln", "cross_attn_ln"}
EXTRA_CODE_POSITIONS = 2  # official files have two positions more than the text


def official_name(name: str) -> str:
    """The fairseq name of a weight: the renames of conversion, undone."""
    in_decoder = name.startswith("decoder.")
    back = {
        new: old
        for old, new in SEGMENT_RENAMES.items()
        if (old in DECODER_ONLY) == in_decoder or old == "ffn_layernorm"
    }
    return ".".join(back.get(segment, segment) for segment in name.split("."))


def official_arguments(
    model: OFAForConditionalGeneration, image_size: int, task: str = "caption"
) -> argparse.Namespace:
    """fairseq's arguments that say what kind of network and of task this is."""
    config = model.config
    sizes = {}
    for side in ("encoder", "decoder"):
        sizes |= {
            f"{side}_embed_dim": config.d_model,
            f"{side}_ffn_embed_dim": getattr(config, f"{side}_ffn_dim"),
            f"{side}_layers": getattr(config, f"{side}_layers"),
            f"{side}_attention_heads": getattr(config, f"{side}_attention_heads"),
            f"{side}_normalize_before": True,
        }
    same = ("resnet_type", "token_bucket_size", "image_bucket_size", "code_image_size", "attn_scale_factor")
    return argparse.Namespace(
        arch="ofa_base",
        task=task,
        patch_image_size=image_size,
        max_source_positions=config.max_position_embeddings,
        max_target_positions=config.max_position_embeddings,
        no_scale_embedding=True,
        layernorm_embedding=True,
        patch_layernorm_embedding=True,
        code_layernorm_embedding=True,
        add_type_embedding=True,
        share_all_embeddings=True,
        scale_attn=True,
        scale_fc=True,
        scale_heads=True,
        scale_resids=False,
        disable_entangle=True,
        entangle_position_embedding=False,
        activation_fn="gelu",
        **sizes,
        **{name: getattr(config, name) for name in same},
    )


def write_official_checkpoint(
    model: OFAForConditionalGeneration,
    path: str | Path,
    image_size: int,
    task: str = "caption",
    num_codes: int = NUM_CODES,
) -> None:
    """Save a model as an official `.pt`: arguments, all weights under fairseq's names, the index tables.

    Args:
        task: fairseq's name of the task, such as "vqa_gen".
        num_codes: symbols of image codes in the vocabulary.
    """
    config = model.config
    weights = OrderedDict(
        (official_name(name), tensor.detach().clone()) for name, tensor in model.state_dict().items()
    )
    weights["encoder.version"] = weights["decoder.version"] = torch.tensor([3.0])
    code_positions = torch.Size([config.max_position_embeddings + EXTRA_CODE_POSITIONS])
    for name, compute in recomputed_tables(config).items():
        weights[name] = compute(code_positions)
    checkpoint = {
        "args": argparse.Namespace(**vars(official_arguments(model, image_size, task)), code_dict_size=num_codes),
        "cfg": None,
        "model": weights,
        "extra_state": {},
    }
    torch.save(checkpoint, path)


# ------------------------------------------------------------------------------------------------ VQGAN


def write_official_vqgan(vqgan: Any, weight: Tensor, bias: Tensor, folder: Path) -> tuple[Path, Path]:
    """Save a VQGAN as the official `last.ckpt` and `model.yaml`; returns their paths.

    Args:
        vqgan: a `diffusers.VQModel` without attention between its levels.
        weight, bias: of the codes' logits, `(codes, width)` and `(codes,)`.
    """
    config = vqgan.config
    levels, state = len(config.block_out_channels), OrderedDict()
    for name, tensor in vqgan.state_dict().items():
        is_projection = ".attentions." in name and tensor.ndim == 2  # a 1 × 1 convolution there
        official = name_in_official_vqgan(name, levels)
        state[official] = (tensor[:, :, None, None] if is_projection else tensor).detach().clone()
    state["quantize.proj.weight"], state["quantize.proj.bias"] = weight[:, :, None, None].clone(), bias.clone()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, settings = folder / "last.ckpt", folder / "model.yaml"
    torch.save({"epoch": 0, "global_step": 0, "state_dict": state}, checkpoint)
    settings.write_text(json.dumps(vqgan_settings(config), indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return checkpoint, settings


def vqgan_settings(config: Any) -> dict[str, Any]:
    """The content of `model.yaml` for a `diffusers.VQModel` without attention between its levels."""
    channels = config.block_out_channels
    sizes = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": config.sample_size,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": channels[0],
        "ch_mult": [one // channels[0] for one in channels],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [2 * config.sample_size],  # that of no level
        "dropout": 0.0,
    }
    params = {"embed_dim": config.vq_embed_dim, "n_embed": config.num_vq_embeddings, "ddconfig": sizes}
    return {"model": {"target": "models.taming.models.vqgan.GumbelVQ", "params": params}}
