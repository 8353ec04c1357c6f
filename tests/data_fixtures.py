"""Small images, MUGE files and a processor with a tiny vocabulary of its own."""

import base64
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ofa_hf.image_processing_ofa import OFAImageProcessor
from ofa_hf.processing_ofa import OFAProcessor


def make_jpeg(seed: int, side: int = 24) -> bytes:
    """A small image of noise, another for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def make_tsv_line(image_id: str, image: bytes, url_safe: bool = False) -> bytes:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    return image_id.encode() + b"\t" + encode(image) + b"\n"


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    return make_jpeg


@pytest.fixture(scope="session")
def tsv_line() -> Callable[..., bytes]:
    return make_tsv_line


@pytest.fixture
def write_muge(tmp_path) -> Callable[..., tuple[Path, Path]]:
    """Writes `IC_<split>.jsonl` and `IC_<split>.tsv`; lines given are appended as they are."""

    def write(
        ids: Iterable[int],
        split: str = "train",
        caption_lines: Iterable[str] = (),
        image_lines: Iterable[bytes] = (),
        num_captions: int = 3,
    ) -> tuple[Path, Path]:
        captions, images = tmp_path / f"IC_{split}.jsonl", tmp_path / f"IC_{split}.tsv"
        ids = list(ids)
        rows = [{"image_id": str(i), "text": [f"标题{i}的{j}" for j in range(num_captions)]} for i in ids]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        captions.write_text("".join(line + "\n" for line in [*lines, *caption_lines]), encoding="utf-8")
        images.write_bytes(
            b"".join([*(make_tsv_line(str(i), make_jpeg(i), url_safe=i % 2 == 1) for i in ids), *image_lines])
        )
        return captions, images

    return write


@pytest.fixture(scope="session")
def tiny_processor() -> OFAProcessor:
    """Every character is a piece; id 2 ends a caption as in OFA's vocabulary."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *"图片描述了什么内容?红色围巾白杯子标题的0123456789一二三四五六七八九十",
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return OFAProcessor(OFAImageProcessor(size=16), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))
