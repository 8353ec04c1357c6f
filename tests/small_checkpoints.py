"""Small files of exactly the official and the legacy shape, with random weights."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from ofa_hf import OFAConfig, OFAForConditionalGeneration


WORD_PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<",
    ">",
    "?",
    *"图片描述了什么内容这段文字的是哪个区域上红色裙子",
]
VOCAB_SIZE = 4 + len(WORD_PIECES) + 1 + 8192 + 1000

ENGLISH_MERGES = ["r e", "re d", "\u0120 red", "\u0120 w", "h a", "ha t", "\u0120w hat"]
ENGLISH_FILLERS = ["madeupword0000", "madeupword0001", "madeupword0002"]
ENGLISH_VOCAB_SIZE = 4 + len(ENGLISH_MERGES) + 256 + len(ENGLISH_FILLERS) + 1 + 8192 + 1000

# Official names of the renamed segments, written down once more from the official sources.
OFFICIAL_SEGMENTS = {
    "encoder": {"self_attn_mid_layer_norm": "attn_ln", "ffn_layer_norm": "ffn_layernorm"},
    "decoder": {
        "self_attn_mid_layer_norm": "self_attn_ln",
        "cross_attn_mid_layer_norm": "cross_attn_ln",
        "cross_attn": "encoder_attn",
        "cross_attn_layer_norm": "encoder_attn_layer_norm",
        "ffn_layer_norm": "ffn_layernorm",
    },
}


def make_config(vocab_size: int = VOCAB_SIZE) -> OFAConfig:
    """A network of every part, small enough to build in a moment."""
    return OFAConfig(
        vocab_size=vocab_size,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=64,
        max_position_embeddings=40,
        resnet_type="resnet18",
        token_bucket_size=8,
        image_bucket_size=8,
        code_image_size=64,
    )


def make_weights(config: OFAConfig) -> dict[str, torch.Tensor]:
    """Random weights under the names of this package, none of them left at a constant."""
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1)
            if name.endswith(("norm.weight", "running_var", "c_attn")) or ".bn" in name:
                tensor.abs_().add_(0.5)
    shared = weights["encoder.embed_tokens.weight"]
    weights["decoder.embed_tokens.weight"] = weights["decoder.output_projection.weight"] = shared
    return weights


def official_name(name: str) -> str:
    segments = OFFICIAL_SEGMENTS[name.split(".")[0]]
    return ".".join(segments.get(segment, segment) for segment in name.split("."))


def index_tables(config: OFAConfig, code_positions: int) -> dict[str, torch.Tensor]:
    """The tables old files carry, computed number by number."""
    import math

    def token_bucket(distance: int) -> int:
        middle, longest = config.token_bucket_size // 2, config.max_position_embeddings - 1
        size = abs(distance)
        if size > middle:
            size = middle + math.ceil(math.log(size / middle) / math.log(longest / middle) * (middle - 1))
        return config.token_bucket_size - 1 + (size if distance >= 0 else -size)

    side = config.image_bucket_size
    rows = torch.full((side**2 + 1, side**2 + 1), -1)
    for a in range(side**2):
        for b in range(side**2):
            down, right = a // side - b // side + side - 1, a % side - b % side + side - 1
            rows[a + 1, b + 1] = down * (2 * side - 1) + right
    rows[0, :], rows[:, 0], rows[0, 0] = (2 * side - 1) ** 2, (2 * side - 1) ** 2 + 1, (2 * side - 1) ** 2 + 2
    positions = range(config.max_position_embeddings)
    tokens = torch.tensor([[token_bucket(query - key) for key in positions] for query in positions])
    window = config.code_image_size // 8
    codes = [0] + [row * side + column + 1 for row in range(window) for column in range(window)]
    codes += [min(1024, side**2)] * (code_positions - len(codes))
    tables = {f"{part}.token_rp_bucket": tokens for part in ("encoder", "decoder")}
    tables |= {f"{part}.image_rp_bucket": rows for part in ("encoder", "decoder")}
    return tables | {"decoder.image_position_idx": torch.tensor(codes)}


def make_official_weights(config: OFAConfig, weights: dict[str, torch.Tensor]) -> OrderedDict:
    """The `model` entry of an official file."""
    weights = OrderedDict((official_name(name), tensor) for name, tensor in weights.items())
    weights["encoder.version"] = weights["decoder.version"] = torch.tensor([3.0])
    weights.update(index_tables(config, 66))
    return weights


def make_arguments() -> argparse.Namespace:
    """fairseq's arguments for `make_config()`."""
    return argparse.Namespace(
        arch="ofa_base",
        task="caption",
        patch_image_size=96,
        encoder_embed_dim=32,
        decoder_embed_dim=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_embed_dim=48,
        decoder_ffn_embed_dim=64,
        max_source_positions=40,
        max_target_positions=40,
        resnet_type="resnet18",
        token_bucket_size=8,
        image_bucket_size=8,
        code_image_size=64,
        attn_scale_factor=2,
        no_scale_embedding=True,
        scale_attn=True,
        scale_resids=False,
        disable_entangle=True,
        entangle_position_embedding=False,
        adam_betas="(0.9, 0.999)",
        update_freq=[1],
    )


def write_official(path: Path, weights: OrderedDict, arguments: argparse.Namespace) -> Path:
    """A complete official checkpoint with training leftovers."""
    torch.save(
        {
            "args": arguments,
            "cfg": None,
            "model": weights,
            "criterion": None,
            "optimizer_history": [{"num_updates": 7, "optimizer_name": "FP16Optimizer"}],
            "task_state": {},
            "extra_state": {"val_loss": 1.5},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3), "step": 7}}, "param_groups": []},
        },
        path,
    )
    return path


VQGAN_CONFIG = {
    "model": {
        "target": "models.taming.models.vqgan.GumbelVQ",
        "params": {
            "kl_weight": 1e-08,
            "embed_dim": 32,
            "n_embed": 8192,
            "ddconfig": {
                "double_z": False,
                "z_channels": 32,
                "resolution": 64,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 32,
                "ch_mult": [1, 1, 1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [8],
                "dropout": 0.0,
            },
        },
    }
}


def vqgan_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of a VQGAN's weights, written down once more from the official sources."""
    settings = config["model"]["params"]["ddconfig"]
    ch, factors, blocks = settings["ch"], settings["ch_mult"], settings["num_res_blocks"]
    width, resolution = settings["z_channels"], settings["resolution"]
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, given: int, out: int, side: int) -> None:
        shapes.update({f"{name}.weight": (out, given, side, side), f"{name}.bias": (out,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def block(name: str, given: int, out: int) -> None:
        norm(f"{name}.norm1", given)
        convolution(f"{name}.conv1", given, out, 3)
        norm(f"{name}.norm2", out)
        convolution(f"{name}.conv2", out, out, 3)
        if given != out:
            convolution(f"{name}.nin_shortcut", given, out, 1)

    def attention(name: str, size: int) -> None:
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", size, size, 1)

    def middle(name: str, size: int) -> None:
        block(f"{name}.mid.block_1", size, size)
        attention(f"{name}.mid.attn_1", size)
        block(f"{name}.mid.block_2", size, size)

    def has_attention(level: int) -> bool:
        return resolution // 2**level in settings["attn_resolutions"]

    convolution("encoder.conv_in", 3, ch, 3)
    size = ch
    for level, factor in enumerate(factors):
        for number in range(blocks):
            block(f"encoder.down.{level}.block.{number}", size, ch * factor)
            size = ch * factor
            if has_attention(level):
                attention(f"encoder.down.{level}.attn.{number}", size)
        if level < len(factors) - 1:
            convolution(f"encoder.down.{level}.downsample.conv", size, size, 3)
    middle("encoder", size)
    norm("encoder.norm_out", size)
    convolution("encoder.conv_out", size, width, 3)
    convolution("decoder.conv_in", width, size, 3)
    middle("decoder", size)
    for level in reversed(range(len(factors))):
        for number in range(blocks + 1):
            block(f"decoder.up.{level}.block.{number}", size, ch * factors[level])
            size = ch * factors[level]
            if has_attention(level):
                attention(f"decoder.up.{level}.attn.{number}", size)
        if level:
            convolution(f"decoder.up.{level}.upsample.conv", size, size, 3)
    norm("decoder.norm_out", size)
    convolution("decoder.conv_out", size, 3, 3)
    number, embed = config["model"]["params"]["n_embed"], config["model"]["params"]["embed_dim"]
    convolution("quant_conv", width, embed, 1)
    convolution("post_quant_conv", embed, width, 1)
    convolution("quantize.proj", width, number, 1)
    shapes["quantize.embed.weight"] = (number, embed)
    return shapes


def write_vqgan(folder: Path, config: dict = VQGAN_CONFIG, state: dict | None = None) -> tuple[Path, Path]:
    """`last.ckpt` as Lightning writes it, with objects that belong to training, and `model.yaml`."""
    if state is None:
        generator = torch.Generator().manual_seed(0)
        shapes = vqgan_shapes(config)
        state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
        state["loss.discriminator.main.0.weight"] = torch.ones(2, 3)
    checkpoint, settings = folder / "last.ckpt", folder / "model.yaml"
    leftovers = {"epoch": 7, "callbacks": {argparse.Namespace: {"best": Path("x.ckpt")}}, "optimizer_states": []}
    torch.save({**leftovers, "pytorch-lightning_version": "1.0.8", "state_dict": state}, checkpoint)
    settings.write_text(json.dumps(config), encoding="utf-8")  # which is YAML too
    return checkpoint, settings


def write_vocabulary(path: Path) -> Path:
    """The word pieces of `make_config()` as a BERT `vocab.txt`."""
    path.write_text("\n".join(WORD_PIECES) + "\n", encoding="utf-8")
    return path


def english_pieces() -> list[str]:
    """GPT-2's pieces of a small vocabulary, most frequent first, and the fillers of fairseq's dictionary."""
    merged = [merge.replace(" ", "") for merge in ENGLISH_MERGES]
    return [*reversed(merged), *sorted(ByteLevel.alphabet()), *ENGLISH_FILLERS]


def write_english_vocabulary(folder: Path) -> Path:
    """`encoder.json`, `vocab.bpe` and `dict.txt` as in OFA's `utils/BPE`."""
    folder.mkdir()
    encoder = {piece: index for index, piece in enumerate(sorted(set(english_pieces()) - set(ENGLISH_FILLERS)))}
    lines = [f"{encoder.get(piece, piece)} {count}" for count, piece in enumerate(english_pieces())]
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *ENGLISH_MERGES, ""]), encoding="utf-8")
    (folder / "dict.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


def write_bart_vocabulary(folder: Path) -> Path:
    """The same as `vocab.json` and `merges.txt`, as BART and the 2022 folders have it."""
    folder.mkdir(exist_ok=True)
    entries = ["<s>", "<pad>", "</s>", "<unk>", *english_pieces(), "<mask>"]
    ids = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *ENGLISH_MERGES, ""]), encoding="utf-8")
    return folder


def write_legacy(folder: Path, config: OFAConfig, weights: dict[str, torch.Tensor]) -> Path:
    """What OFA-Chinese's `save_pretrained` wrote: old config, renamed keys, index tables, separate output layer."""
    folder.mkdir()
    weights = {**weights, **index_tables(config, 65)}
    weights["decoder.output_projection.weight"] = weights["encoder.embed_tokens.weight"].clone()
    torch.save(weights, folder / "pytorch_model.bin")
    fields = {name: getattr(config, name) for name in ("vocab_size", "d_model", "encoder_layers")}
    fields |= {"decoder_layers": 3, "resnet_type": "resnet18", "token_bucket_size": 8, "image_bucket_size": 8}
    fields |= {"code_image_size": 64, "attn_scale_factor": 2.0, "model_type": "ofa", "forced_eos_token_id": 2}
    fields |= {"normformer": True, "num_hidden_layers": 2, "classifier_dropout": 0.0, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
