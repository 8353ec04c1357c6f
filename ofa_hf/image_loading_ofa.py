"""Anything that holds an image → an upright 8-bit RGB image: files, bytes, base64, URLs, arrays, rows of `datasets`.

OFA reads every image with `load_image`. This file imports neither torch nor transformers.
"""

import base64
import binascii
import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image


logger = logging.getLogger(__name__)

# Suffixes of image files, for all commands. Some formats need an optional library, see `missing_reader`.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .jp2 .j2k .ppm .pgm .pnm .mpo .avif "
    ".heic .heif .hif .jxl".split()
)
FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF"  # named in errors
REFUSED_FORMATS = frozenset({"EPS", "WMF", "EMF"})  # Pillow runs other programs to read these
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs; about 540 MB as RGB
USABLE_SHARE = 0.01  # minimum share of pixels that must be decodable in a broken file
URL_PREFIXES = ("http://", "https://")
URL_TIMEOUT = 30.0  # seconds
BASE64_TEXT_MINIMUM = 64  # characters; no image file is shorter, so shorter text is read as a path
BASE64_TEXT = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*")
# Formats that Pillow reads with another library: a suffix by which to ask for it, and its package.
OPTIONAL_FORMATS = {
    "HEIC": (".heic", "pillow-heif"),
    "JPEG XL": (".jxl", "pillow-jxl-plugin"),
    "AVIF": (".avif", "pillow-avif-plugin"),  # where Pillow itself was built without it
}
# Called before such a format is refused; the package ofa_hf sets a function here that loads the libraries.
load_optional_readers: list[Callable[[], None]] = []
SUFFIX_FORMATS = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL", ".avif": "AVIF"}
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
VIDEO_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"qt  ", b"avc1", b"3gp4", b"3gp5")
EXIF_ORIENTATION_TAG = 0x0112
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image cannot be read. The message is one short printable line, even for hostile files and names."""

    def __init__(self, text: str):
        line = " ".join(line.strip() for line in text.splitlines())
        line = "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in line)
        super().__init__(line if len(line) <= 1200 else f"{line[:600]} … {line[-600:]}")


def load_image(source: Any, *, timeout: float | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn anything that holds an image into an upright 8-bit RGB image.

    Args:
        source: a path, an `http(s)` URL, the bytes of an image file, a binary file object, base64 text (standard or
            URL-safe, padded or not, with or without a `data:` prefix), a PIL image, an array or tensor, or an
            undecoded image of `datasets`, `{"bytes", "path"}`. Arrays are `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels, and hold 0–255 or
            (floating point) 0–1. A `pathlib.Path` is always read as a path.
        timeout: seconds to wait for a server; 30 by default.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        A PIL image in mode RGB. EXIF rotation is applied, transparent parts become white, 16-bit gray is scaled to 8
        bits, and an animation gives its first frame. A truncated file gives the part that could be decoded.

    Raises:
        ImageError: the file does not exist, holds no image or too little of one, or the image is too large.
    """
    if isinstance(source, Mapping):
        source = _stored_source(source)
    if isinstance(source, Image.Image):
        return _load_lazy(source, max_pixels)
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return _array_to_image(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), f"The image of {len(source):,} bytes", max_pixels)
    if isinstance(source, str):
        return _load_text(source, timeout, max_pixels)
    if isinstance(source, os.PathLike):
        return _load_file(os.fsdecode(source), max_pixels)
    if hasattr(source, "read"):
        label = getattr(source, "name", None)
        return _decode(io.BytesIO(source.read()), str(label or "The image file object"), max_pixels)
    raise ImageError(
        f"An image cannot be a {type(source).__name__}. Accepted: a path, a URL, bytes, a file object, base64 text, "
        f"a PIL image, a numpy array or a torch tensor. Convert it to one of these."
    )


def _stored_source(stored: Mapping) -> bytes | str | os.PathLike:
    """The bytes or the path of an undecoded image of `datasets`."""
    source = stored.get("bytes") or stored.get("path")
    if not source:
        raise ImageError(
            f"The image is a dict with the keys {sorted(map(str, stored))[:5]} but has neither bytes nor a path. "
            f'Pass {{"bytes": …}} or {{"path": …}}.'
        )
    return source


def _is_tensor(source: Any) -> bool:
    return hasattr(source, "detach") and hasattr(source, "is_floating_point")  # without importing torch


def _load_text(text: str, timeout: float | None, max_pixels: int) -> Image.Image:
    """Read a `data:` URL, a web URL, a path or base64 text."""
    if text.startswith("data:"):
        return _decode_base64(text.partition(",")[2], max_pixels)
    if text.startswith(URL_PREFIXES):
        return _fetch(text, timeout, max_pixels)
    if len(text) >= BASE64_TEXT_MINIMUM and BASE64_TEXT.fullmatch(text) and not os.path.exists(text):
        return _decode_base64(text, max_pixels)
    return _load_file(text, max_pixels)


def _fetch(url: str, timeout: float | None, max_pixels: int) -> Image.Image:
    from .versions_ofa import http_get  # here, since it imports torch

    try:
        data = http_get(url, URL_TIMEOUT if timeout is None else timeout)
    except Exception as error:  # transformers 4 and 5 use HTTP clients with different errors
        raise ImageError(
            f"{url} cannot be fetched ({_one_line(error, 300)}). Check the URL, or download the file first."
        ) from error
    return _decode(io.BytesIO(data), url, max_pixels)


def _load_file(path: str, max_pixels: int) -> Image.Image:
    try:
        with open(path, "rb") as stream:
            return _decode(stream, path, max_pixels)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # no such file, a folder, no permission; a name too long for a path
        raise ImageError(_why_not_opened(path, error)) from error


def _why_not_opened(path: str, error: Exception) -> str:
    if os.path.isdir(path):
        return f"{path} is a folder, not an image. Pass the images in it one by one."
    if isinstance(error, FileNotFoundError):
        return f"{path[:500]} does not exist. Pass the path of an image file ({FORMATS})."
    return f"{path[:500]} cannot be opened: {getattr(error, 'strerror', None) or error}."


def _decode_base64(text: str, max_pixels: int) -> Image.Image:
    """Decode standard or URL-safe base64. Whitespace, missing padding and an incomplete last group are accepted."""
    label = f"The base64 text {text[:16]!r}… of {len(text):,} characters"
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    if len(compact) % 4 == 1:  # only six bits of a byte: the text was truncated
        compact = compact[:-1]
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{label} is not base64: {error}. Encode an image file ({FORMATS}) again.") from error
    return _decode(io.BytesIO(data), label, max_pixels)


def _decode(stream: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Read one image from a seekable stream. `label` names it in errors."""
    image = _open(stream, label, max_pixels)
    try:
        image.load()
    except Exception as error:  # decoders can raise anything on hostile files
        image = _salvage(image, stream, label, error)
    return _to_rgb(image, label)


def missing_reader(suffix: str) -> str:
    """What to install to read files with this suffix, such as `ofa-hf[images]`; empty if nothing is needed."""
    kind = SUFFIX_FORMATS.get(suffix.lower())
    return "" if kind is None or _can_read(kind) else "ofa-hf[images]"


def _can_read(kind: str) -> bool:
    """Whether a format of `OPTIONAL_FORMATS` can be read, after trying to load its library."""
    suffix = OPTIONAL_FORMATS[kind][0]
    if suffix not in Image.registered_extensions():
        for load in load_optional_readers:
            load()
    return suffix in Image.registered_extensions()


def _format_of(start: bytes) -> str | None:
    """The format that needs an optional library, by a file's first bytes; None for any other."""
    if start[4:8] == b"ftyp":
        brands = {start[place : place + 4] for place in range(8, min(len(start), int.from_bytes(start[:4], "big")), 4)}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIC" if brands & HEIC_BRANDS else None
    return "JPEG XL" if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")) else None


def _open(stream: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Read an image's header. Refuses other files and images that are too large to decode."""
    start = stream.read(64)
    if not start:
        raise ImageError(f"{label} is empty (0 bytes). Pass an image file ({FORMATS}).")
    stream.seek(0)
    kind = _format_of(start)
    if kind and not _can_read(kind):
        raise ImageError(
            f"{label} is a {kind} image, which needs the package {OPTIONAL_FORMATS[kind][1]}. Install it: "
            "`pip install 'ofa-hf[images]'`, or save the image as JPEG."
        )
    try:
        image = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label} is too large to decode: {error} Reduce it first.") from error
    except Exception as error:
        raise ImageError(_why_no_image(start, label)) from error
    _check_kind_and_size(image, label, max_pixels)
    return image


def _why_no_image(start: bytes, label: str) -> str:
    if start.startswith(IMAGE_STARTS) or _format_of(start):
        return f"{label} is truncated or damaged within its header, so no pixels are left. Get the file again."
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<svg", b"<?xml")):
        return f"{label} is an SVG drawing or another XML file. Accepted: {FORMATS}. Export the drawing as PNG."
    if start[4:8] == b"ftyp" and start[8:12] in VIDEO_BRANDS or start.startswith(b"\x1aE\xdf\xa3"):
        return f"{label} is a video. Accepted: {FORMATS}. Save the frames that you need as images."
    return f"{label} is not an image: it starts with {start[:16]!r}. Accepted: {FORMATS}. Convert it to one of these."


def _check_kind_and_size(image: Image.Image, label: str, max_pixels: int) -> None:
    if image.format in REFUSED_FORMATS:
        raise ImageError(f"{label} is a drawing in {image.format}. Accepted: {FORMATS}. Convert it first.")
    if len(image.size) != 2:  # Pillow accepts any number of dimensions from the file
        raise ImageError(f"{label} has the dimensions {image.size}. Accepted: {FORMATS}. Convert it first.")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is too large to decode: {width:,}×{height:,} pixels. Accepted: at most {max_pixels:,} pixels. "
            f"Reduce it first."
        )
    if not width * height:
        raise ImageError(f"{label} has no pixels: its size is {width}×{height}. Pass an image file ({FORMATS}).")


def _load_lazy(image: Image.Image, max_pixels: int) -> Image.Image:
    """Convert a PIL image to RGB; one that was opened but not yet decoded is decoded here."""
    label = str(getattr(image, "filename", "") or f"The {image.width}×{image.height} PIL image")
    _check_kind_and_size(image, label, max_pixels)
    try:
        image.load()
    except Exception as error:
        image = _salvage(image, getattr(image, "fp", None), label, error)
    return _to_rgb(image, label)


def _salvage(image: Image.Image, stream: BinaryIO | None, label: str, error: Exception) -> Image.Image:
    """Keep the part of a broken file that could be decoded.

    Pillow's own switch for this is global to the process and all its threads, so it is not used: a JPEG gets the end
    marker that is missing, other formats keep the rows that were decoded.
    """
    try:
        if image.format in ("JPEG", "MPO") and stream is not None:
            stream.seek(0)
            image = Image.open(io.BytesIO(stream.read() + b"\xff\xd9"))
        else:
            image.tile = []  # nothing left to decode: load() returns the pixels so far
        image.load()
        share = _share_decoded(np.asarray(image))
    except Exception:
        share = 0.0
    if share < USABLE_SHARE:
        raise ImageError(
            f"{label} is damaged or truncated before its first pixels ({_one_line(error)}). Get the file again."
        ) from error
    logger.info(f"{label} is damaged or truncated ({_one_line(error)}). The part that could be decoded is used.")
    return image


def _share_decoded(pixels: np.ndarray) -> float:
    """The share of pixels that differ from the last one, which in a broken file is the decoder's fill color."""
    other = pixels != pixels[-1, -1]
    return float((other.any(axis=-1) if other.ndim == 3 else other).mean())


def _one_line(error: Exception, length: int = 200) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """Convert a decoded image of any mode to upright 8-bit RGB."""
    try:
        transpose = EXIF_TRANSPOSE.get(_orientation(image))
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_gray_to_8_bit(np.asarray(image)))
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = _on_white(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if transpose is not None:
            image = image.transpose(transpose)
            image.info = {}  # the EXIF data still contains the rotation, which must not be applied twice
        return image
    except Exception as error:
        raise ImageError(
            f"{label} (mode {image.mode}) cannot be converted to RGB ({_one_line(error)}). Save it as RGB first."
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF data
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    """Blend an image with transparent parts onto white."""
    if image.mode == "La":  # premultiplied modes convert only to their plain ones
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _gray_to_8_bit(gray: np.ndarray) -> np.ndarray:
    """Scale gray values `(height, width)` of 16 bits, 32 bits or floating point to 8 bits."""
    if gray.dtype == np.uint16:
        return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65,535 = 255 × 257
    low, high = float(gray.min()), float(gray.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("gray values are not finite")
    if low >= 0 and high <= 1 and gray.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((gray.astype(np.float32) - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)


def _array_to_image(array: Any) -> Image.Image:
    """Convert an array or tensor of pixels to an RGB image."""
    is_tensor = _is_tensor(array)
    if is_tensor:
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    shape = tuple(array.shape)
    label = f"The image array of shape {shape}"
    if array.ndim == 3:
        channel_axes = [axis for axis in ((0, -1) if is_tensor else (-1, 0)) if shape[axis] in (1, 3, 4)]
        array = np.moveaxis(array, channel_axes[0], -1) if channel_axes else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise ImageError(
            f"{label} is not an image. Accepted: (height, width), (height, width, channels) or (channels, height, "
            f"width) with 1, 3 or 4 channels. Pass several images as a list."
        )
    values = _values_to_8_bit(array, label)
    return _to_rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values), label)


def _values_to_8_bit(array: np.ndarray, label: str) -> np.ndarray:
    """Convert pixel values to 8 bits. Floating-point values up to 1 are read as 0–1."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _gray_to_8_bit(array)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise ImageError(
            f"{label} holds values from {low} to {high}. Accepted: 0–255, or 0–1 in floating point. "
            f"Pass pixels that are already normalized to the model as pixel_values."
        )
    scale = 255.0 if array.dtype.kind == "f" and high <= 1 else 1.0
    return np.rint(array.astype(np.float32) * np.float32(scale)).astype(np.uint8)
