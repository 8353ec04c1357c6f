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
