"""Images of any bytes, through the loader, the image processor and the pipeline."""

import base64
import io
import random
import resource
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tiny_shop
import torch
from PIL import Image, features
from stress import fuzz, mutation, processes
from stress.pieces import Figures

from ofa_hf import OFAImageProcessor, OFAImageToTextPipeline
from ofa_hf.image_loading_ofa import MAX_PIXELS, ImageError, load_image


MAX_TRIED_PIXELS = 2**22  # a larger image takes long to decode, so it is refused here; `bombs` tries the real limit
SIDE = 24
BOMB_SECONDS, BOMB_MEGABYTES = 30.0, 3000  # of an image of 178 million pixels, 540 MB as RGB


def originals() -> dict[str, bytes]:
    """Small images of every format a shop may have, and of some that Pillow reads besides."""
    chance = random.Random(0)
    noise = Image.frombytes("RGB", (SIDE, SIDE), chance.randbytes(3 * SIDE * SIDE))
    smooth = Image.linear_gradient("L").resize((SIDE, SIDE))
    alpha = noise.copy()
    alpha.putalpha(smooth)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "描述"
    frames = [smooth.rotate(angle) for angle in (90, 180)]
    deep = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 100)
    made = {
        "jpeg": (noise, "JPEG", {"exif": exif}),
        "jpeg grey": (smooth, "JPEG", {"progressive": True}),
        "jpeg cmyk": (noise.convert("CMYK"), "JPEG", {"icc_profile": b"profile" * 9}),
        "jpeg several": (noise, "MPO", {"save_all": True, "append_images": [noise.rotate(90)]}),
        "png": (noise, "PNG", {"exif": exif, "dpi": (72, 72)}),
        "png alpha": (alpha, "PNG", {}),
        "png palette": (noise.quantize(16), "PNG", {"transparency": 3, "optimize": True}),
        "png deep": (deep, "PNG", {}),
        "png black and white": (smooth.convert("1"), "PNG", {}),
        "png moving": (smooth, "PNG", {"save_all": True, "append_images": frames}),
        "gif": (noise.quantize(32), "GIF", {"transparency": 1}),
        "gif moving": (smooth, "GIF", {"save_all": True, "append_images": frames, "comment": b"text"}),
        "bmp": (noise, "BMP", {}),
        "bmp palette": (smooth, "BMP", {}),
        "ico": (alpha, "ICO", {"sizes": [(16, 16), (SIDE, SIDE)]}),
        "tiff": (noise, "TIFF", {"tiffinfo": {270: "text"}}),
        "tiff deep": (deep, "TIFF", {}),
        "tiff several": (smooth, "TIFF", {"save_all": True, "append_images": frames}),
        "ppm": (noise, "PPM", {}),
        "tga": (alpha, "TGA", {"compression": "tga_rle"}),
        "pcx": (noise, "PCX", {}),
        "sgi": (noise, "SGI", {}),
        "dds": (alpha, "DDS", {}),
        "eps": (noise, "EPS", {}),
        "im": (noise, "IM", {}),
        "xbm": (smooth.convert("1"), "XBM", {}),
    }
    if features.check("libtiff"):
        kinds = ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        made |= {f"tiff {kind}": (noise, "TIFF", {"compression": kind}) for kind in kinds}
    if features.check("webp"):
        made |= {"webp": (noise, "WEBP", {}), "webp alpha": (alpha, "WEBP", {"lossless": True})}
        made["webp moving"] = (noise, "WEBP", {"save_all": True, "append_images": [noise.rotate(90)]})
    if features.check("jpg_2000"):
        made["jpeg2000"] = (noise, "JPEG2000", {})
    if features.check("avif"):
        made["avif"] = (noise, "AVIF", {"speed": 10})
    return {name: saved(*entry) for name, entry in made.items()}


def saved(image: Image.Image, kind: str, options: dict) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ loader


class ImageTarget(fuzz.Target):
    """Bytes in every form that `load_image` takes; every tenth goes through the image processor."""

    refusals = (ImageError,)
    megabytes = 2500  # the image processor accepts 178 million pixels, and half of such a file may be missing

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.originals = list(originals().values())
        self.processor = OFAImageProcessor(size=32)

    def make(self, chance: random.Random) -> tuple[Any, bool]:
        data = mutation.mutate(chance.choice(self.originals), chance, self.originals)
        if data[:4] == b"\x89PNG" and chance.random() < 0.7:
            data = mutation.sign_png(data)
        return self.as_source(data, chance), chance.random() < 0.1

    def as_source(self, data: bytes, chance: random.Random) -> Any:
        form = chance.randrange(12)
        if form == 0:
            path = self.folder / "image"
            path.write_bytes(data)
            return path
        if form == 1:
            text = chance.choice((base64.b64encode, base64.urlsafe_b64encode))(data).decode()
            return mutation.mutate(text.encode(), chance).decode("utf-8", "surrogateescape")
        if form == 2:
            return "data:image/png;base64," + base64.b64encode(data).decode()
        if form == 3:
            return io.BytesIO(data)
        if form == 4:
            return opened(data)
        if form == 5:
            return odd_array(chance)
        return data

    def attempt(self, made: tuple[Any, bool]) -> str:
        source, whole_way = made
        if getattr(source, "ndim", 0) == 4 and not len(source):
            return "no image"  # a ValueError of the image processor, about the batch
        if whole_way:
            pixels = self.processor(source, return_tensors="pt")["pixel_values"]
            assert pixels.shape[1:] == (3, 32, 32), pixels.shape  # an array of four dimensions is several images
            assert bool((pixels.abs() <= 1).all()), "a pixel is outside −1 … 1"
            return "processed"
        image = load_image(source, max_pixels=MAX_TRIED_PIXELS)
        assert image.mode == "RGB", image.mode
        assert 0 < image.width * image.height <= MAX_TRIED_PIXELS, image.size
        assert np.asarray(image).shape == (image.height, image.width, 3)
        return "read"


def opened(data: bytes) -> Any:
    """A PIL image that is not read yet, where Pillow takes the file for one."""
    try:
        return Image.open(io.BytesIO(data))
    except Exception:
        return data


def odd_array(chance: random.Random) -> np.ndarray | torch.Tensor:
    """An array of some shape and kind, among them infinite and empty ones."""
    shape = tuple(chance.choice((0, 1, 2, 3, 4, 5, 17)) for _ in range(chance.randrange(5)))
    kinds = (np.uint8, np.uint16, np.int8, np.int32, np.uint64, np.float16, np.float32, np.float64, bool, np.complex64)
    values = np.random.default_rng(chance.randrange(2**32)).standard_normal(shape or 1).reshape(shape) * chance.choice(
        (0, 0.3, 100, 1e30)
    )
    if values.size and chance.random() < 0.2:
        values.flat[0] = chance.choice((np.nan, np.inf, -np.inf))
    with np.errstate(all="ignore"):
        array = np.asarray(np.abs(values)).astype(chance.choice(kinds))
    if chance.random() < 0.3 and array.dtype != np.uint16 and array.dtype != np.uint64:
        tensor = torch.from_numpy(array)
        return tensor.to(torch.bfloat16) if tensor.is_floating_point() and chance.random() < 0.3 else tensor
    return array


def mutations(seed: int, amount: int, folder: Path) -> Figures:
    """Changed files of every format, and odd arrays."""
    return fuzz.try_inputs(ImageTarget, seed, amount, folder)


# ---------------------------------------------------------------------------------------------- pipeline


class CaptionTarget(fuzz.Target):
    """Changed images, alone or in lists with prompts, through a pipeline of a tiny model."""

    refusals = (ImageError, ValueError)
    megabytes = 2500

    def __init__(self, folder: Path):
        super().__init__(folder)
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = tiny_shop.write_model(folder / "model")
        model = AutoModelForImageTextToText.from_pretrained(path)
        self.captioner = OFAImageToTextPipeline(model=model, processor=AutoProcessor.from_pretrained(path))
        self.images = ImageTarget(folder)

    def make(self, chance: random.Random) -> tuple[Any, dict]:
        sources = [self.images.make(chance)[0] for _ in range(chance.choice((1, 1, 1, 3)))]
        options = {"prompt": odd_text(chance)} if chance.random() < 0.3 else {}
        return sources if len(sources) > 1 else sources[0], options

    def attempt(self, made: tuple[Any, dict]) -> str:
        sources, options = made
        found = self.captioner(sources, max_new_tokens=3, **options)
        found = found if isinstance(sources, list) else [found]
        assert all(isinstance(captions[0]["generated_text"], str) for captions in found), found
        return "captioned"


def odd_text(chance: random.Random) -> str:
    alphabet = "红色裙子 <>?/\\\t\n\r\x00\x1b\u200b\u202e\ufeff\U0001f600é字a1"
    return "".join(chance.choice(alphabet) for _ in range(chance.choice((0, 1, 5, 30, 300))))


def captions(seed: int, amount: int, folder: Path) -> Figures:
    """Changed files through the pipeline."""
    return fuzz.try_inputs(CaptionTarget, seed, amount, folder)


# ------------------------------------------------------------------------------------------------- bombs


def bombs(seed: int, amount: int, folder: Path) -> Figures:
    """Images that claim to be, or are, far larger than their files."""
    chance, figures = random.Random(seed), {}
    for _ in range(amount):
        for name, data in bomb_files(chance).items():
            child = processes.fork(lambda data=data: open_bomb(data), folder / "log")
            status = processes.ended(child, BOMB_SECONDS)
            processes.clear_away(child)
            assert status == 0, f"seed {seed}, {name}: {status}\n{processes.tail(folder / 'log')}"
            figures[name] = (folder / "log").read_text(encoding="utf-8").splitlines()[-1]
            assert "beyond" not in name or figures[name].startswith("refused"), f"{name}: {figures[name]}"
    return figures


def open_bomb(data: bytes) -> None:
    """In a child of its own, so that the peak of memory is this image's."""
    before, start, outcome = fuzz.peak_megabytes(), time.perf_counter(), "refused"
    resource.setrlimit(resource.RLIMIT_DATA, (BOMB_MEGABYTES * 2**20 + before * 2**20,) * 2)
    try:
        image = load_image(data)
        outcome = "read"
        assert image.width * image.height <= MAX_PIXELS
    except ImageError as error:
        fuzz.check_message(str(error))
    growth = fuzz.peak_megabytes() - before
    print(f"{outcome}, {time.perf_counter() - start:.1f} s, {growth} MB")


def bomb_files(chance: random.Random) -> dict[str, bytes]:
    side = chance.randint(60_000, 2**31 - 1)
    many = saved(
        Image.new("P", (64, 64)),
        "GIF",
        {"save_all": True, "append_images": [Image.new("P", (64, 64), n) for n in range(1, 200)]},
    )
    return {
        "png beyond the limit": png_of_zeros(side, side, rows=10),
        "png below the limit, rows missing": png_of_zeros(13_000, 13_000, rows=10),
        "png below the limit, complete": png_of_zeros(13_300, 13_300, rows=13_300),
        "png with a text of 1 GB": png_of_zeros(8, 8, rows=8, text=2**20 * chance.randint(200, 1000)),
        "gif beyond the limit": struct.pack("<6s2HB2x", b"GIF89a", 65_535, 65_535, 0xF0) + bytes(6) + many[19:],
        "gif of many frames": many,
        "bmp beyond the limit": struct.pack(
            "<2sIIIIiiHHIIiiII", b"BM", 10**6, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0
        ),
        "tiff beyond the limit": tiff_header(side, side),
        "jpeg of 65,500 a side": jpeg_of_size(65_500, 65_500),
        "jpeg below the limit, rows missing": jpeg_of_size(13_000, 13_000),
        "one row of 178 million": png_of_zeros(178_000_000, 1, rows=1),
    }


def png_of_zeros(width: int, height: int, rows: int, text: int = 0) -> bytes:
    """A grey image, of which only so many rows are there; `text` bytes of zeros in a compressed remark."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = packed_zeros(rows * (1 + width) if width < 2**28 else 0)
    chunks = [chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))]
    chunks += [chunk(b"zTXt", b"Comment\0\0" + packed_zeros(text))] if text else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def packed_zeros(length: int) -> bytes:
    """So many zeros as zlib packs them; a megabyte is packed once and repeated."""
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(length % 2**20)) + packer.flush()
    checksum = struct.pack(">I", (length % 65521) << 16 | 1)  # Adler-32 of zeros
    return b"\x78\x01" + piece * (length // 2**20) + rest + checksum


def tiff_header(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, height), (279, 10)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(300)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(saved(Image.radial_gradient("L"), "JPEG", {}))
    frame = data.find(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">2H", height, width)
    return bytes(data)
