"""A shop that trains in a second: a tiny model, images of one colour each and their captions in MUGE's files."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


COLOURS = {"红": "#cc2222", "绿": "#22aa44", "蓝": "#2244cc", "黄": "#ddcc22", "黑": "#111111", "白": "#f4f4f4"}
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "?"]
WORD_PIECES += list(dict.fromkeys("图片描述了什么内容红绿蓝黄黑白色的方块一个很好看真不错"))
CAPTIONS = ("{}色的方块", "一个{}色方块", "{}方块很好看", "真不错的{}色")
SIDE = 32
# The gradient of a key's bias is mathematically 0, since it cancels in the softmax; Adam makes steps of its noise.
NOISE = ("k_proj.bias", "pos_k_linear.bias")


def write_model(folder: Path, tasks: Sequence[str] | dict[str, dict] = ("caption",)) -> Path:
    """A Hub-ready folder with random weights, and other tasks than captioning if they are named."""
    import torch

    from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor
    from ofa_hf.conversion.vocabulary import build_tokenizer

    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("\n".join(WORD_PIECES) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(vocabulary)
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        resnet_type="resnet18",
        token_bucket_size=8,
        image_bucket_size=4,
        code_image_size=32,
        init_range=0.1,
    )
    model = OFAForConditionalGeneration(config)
    model.generation_config.update(max_length=12, num_beams=1)
    model.save_pretrained(folder)
    OFAProcessor(OFAImageProcessor(size=SIDE), tokenizer, tasks=tasks).save_pretrained(folder)
    return folder


def write_muge(folder: Path, split: str, count: int) -> dict[str, str]:
    """`IC_<split>.jsonl` and `IC_<split>.tsv` of `count` images with four captions each; returns both paths."""
    captions, images = folder / f"IC_{split}.jsonl", folder / f"IC_{split}.tsv"
    with captions.open("w", encoding="utf-8") as texts, images.open("w") as tsv:
        for number in range(count):
            name, colour = list(COLOURS.items())[number % len(COLOURS)]
            rows = {"image_id": f"{split}{number}", "text": [caption.format(name) for caption in CAPTIONS]}
            texts.write(json.dumps(rows, ensure_ascii=False) + "\n")
            buffer = io.BytesIO()
            Image.new("RGB", (SIDE + number, SIDE), colour).save(buffer, "PNG")
            tsv.write(f"{split}{number}\t{base64.b64encode(buffer.getvalue()).decode()}\n")
    return {"caption_file": str(captions), "image_file": str(images)}


def write_shop(folder: Path) -> dict:
    """Model and data in a folder; returns the arguments of a run of 8 steps, all but its output folder."""
    folder.mkdir(exist_ok=True)
    train, test = write_muge(folder, "train", 12), write_muge(folder, "valid", 4)
    return {
        "model_name_or_path": str(write_model(folder / "model")),
        **{f"train_{name}": path for name, path in train.items()},
        **{f"test_{name}": path for name, path in test.items()},
        "targets_per_row": 2,
        "per_device_train_batch_size": 12,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "seed": 7,
        "no_cuda": True,
    }


def write_arguments(path: Path, arguments: dict) -> Path:
    path.write_text(json.dumps(arguments, ensure_ascii=False), encoding="utf-8")
    return path


def command(*words: object) -> list[str]:
    """`ofa-hf finetune …` as a user's shell runs it."""
    return [sys.executable, "-m", "ofa_hf", "finetune", *map(str, words)]


def environment(home: Path) -> dict[str, str]:
    """This process's, with one thread and a cache of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def run(*words: object, home: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(
        command(*words), env=environment(home), capture_output=True, text=True, timeout=timeout, check=False
    )


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def largest_difference(first: Path, second: Path, but: tuple[str, ...] = ()) -> float:
    """Between the weights of two folders, over all tensors but those with these endings; names must be the same."""
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max(
        float((one[name].double() - other[name].double()).abs().max()) for name in one if not name.endswith(but)
    )
