"""Images → `pixel_values`: whatever holds an image becomes RGB, is resized, scaled and normalised.

Source: OFA `data/mm_data/caption_dataset.py` (RGB, square bicubic resize, mean = std = 0.5). 480 pixels is the
official default, OFA-Chinese uses 256: the size belongs to a checkpoint.
"""

import base64
import binascii
import io
import os
import re
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import logging


logger = logging.get_logger(__name__)

MAX_PIXELS = 178_956_970  # Pillow's own limit for files it takes for a decompression bomb; about 540 MB as RGB
FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF"
REFUSED_FORMATS = frozenset({"EPS", "WMF", "EMF"})  # Pillow draws these by running other programs
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
BASE64_TEXT_MINIMUM = 64  # characters; no image file is shorter, so shorter text is taken for a path
USABLE_SHARE = 0.01  # of a broken file's pixels that must be more than filling
BASE64_TEXT = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*")
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
    """An image that cannot be read; the message is one short printable line, whatever the file and its name hold."""

    def __init__(self, text: str):
        line = " ".join(line.strip() for line in text.splitlines())
        line = "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in line)
        super().__init__(line if len(line) <= 1200 else f"{line[:600]} … {line[-600:]}")


def load_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn anything that holds an image into an upright 8-bit RGB image.

    Args:
        source: a path, the bytes of an image file, a binary file object, base64 text (standard or url-safe, padded or
            not, with or without a `data:` prefix), a PIL image, or an array or tensor of shape `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels, holding 0–255 or
            (floating point) 0–1.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        A PIL image in mode RGB: turned as its EXIF data says, transparent parts on white, 16-bit greys scaled to 8,
        the first frame of an animation. Of a file that breaks off in the middle, what could be decoded.

    Raises:
        ImageError: there is no such file, or no image in it, or too little of it, or it is too large.
    """
    if isinstance(source, Image.Image):
        return _load_lazy(source, max_pixels)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _array_to_image(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), f"The image of {len(source):,} bytes", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _load_text(source, max_pixels)
    if hasattr(source, "read"):
        label = getattr(source, "name", None)
        return _decode(io.BytesIO(source.read()), str(label or "The image file object"), max_pixels)
    raise ImageError(
        f"An image cannot be a {type(source).__name__}. Accepted: a path, bytes, a file object, base64 text, "
        f"a PIL image, a numpy array or a torch tensor. Convert it to one of these."
    )


def _load_text(source: str | os.PathLike, max_pixels: int) -> Image.Image:
    """A path, or else base64 text, becomes an image."""
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if isinstance(source, str) and text.startswith("data:"):
        return _decode_base64(text.partition(",")[2], max_pixels)
    if isinstance(source, str) and text.startswith(("http://", "https://")):
        raise ImageError(f"{text[:200]} is an address, not a file. Download it first, or give it to the pipeline.")
    try:
        with open(text, "rb") as stream:
            return _decode(stream, text, max_pixels)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # no such file, a folder, no permission; a name too long to be a path
        if isinstance(source, str) and len(text) >= BASE64_TEXT_MINIMUM and _is_base64(text):
            return _decode_base64(text, max_pixels)
        raise ImageError(_why_not_opened(text, error)) from error


def _why_not_opened(path: str, error: Exception) -> str:
    if os.path.isdir(path):
        return f"{path} is a folder, not an image. Give the images in it one by one."
    if isinstance(error, FileNotFoundError):
        return f"{path[:500]} does not exist. Give the path of an image file ({FORMATS})."
    return f"{path[:500]} cannot be opened: {getattr(error, 'strerror', None) or error}."


def _is_base64(text: str) -> bool:
    return BASE64_TEXT.fullmatch(text) is not None


def _decode_base64(text: str, max_pixels: int) -> Image.Image:
    """Decode standard or url-safe base64; blanks, missing padding and a torn last group are tolerated."""
    label = f"The base64 text {text[:16]!r}… of {len(text):,} characters"
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    if len(compact) % 4 == 1:  # half a byte: the text was cut off
        compact = compact[:-1]
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{label} is not base64: {error}. Encode an image file ({FORMATS}) again.") from error
    return _decode(io.BytesIO(data), label, max_pixels)


def _decode(stream: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Read one image from a seekable stream; `label` names it in errors."""
    image = _open(stream, label, max_pixels)
    try:
        image.load()
    except Exception as error:  # decoders of hostile files raise anything
        image = _salvage(image, stream, label, error)
    return _to_rgb(image, label)


def _open(stream: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Read an image's header, refusing what is no image or too large to decode."""
    start = stream.read(16)
    if not start:
        raise ImageError(f"{label} is empty (0 bytes). Give an image file ({FORMATS}).")
    stream.seek(0)
    try:
        image = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label} is too large to decode: {error} Make it smaller first.") from error
    except Exception as error:
        raise ImageError(_why_no_image(start, label)) from error
    _check_kind_and_size(image, label, max_pixels)
    return image


def _why_no_image(start: bytes, label: str) -> str:
    if start.startswith(IMAGE_STARTS):
        return f"{label} breaks off or is damaged within its header, so no image is left. Get the file again."
    return f"{label} is not an image: it starts with {start!r}. Accepted: {FORMATS}. Convert it to one of these."


def _check_kind_and_size(image: Image.Image, label: str, max_pixels: int) -> None:
    if image.format in REFUSED_FORMATS:
        raise ImageError(f"{label} is a drawing in {image.format}. Accepted: {FORMATS}. Convert it first.")
    if len(image.size) != 2:  # Pillow reads as many as the file names
        raise ImageError(f"{label} has the size {image.size}, no image's. Accepted: {FORMATS}. Convert it.")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{label} is too large to decode: {width:,}×{height:,} pixels. Accepted: at most {max_pixels:,} pixels. "
            f"Make it smaller first."
        )
    if not width * height:
        raise ImageError(f"{label} has no pixels: its size is {width}×{height}. Give an image file ({FORMATS}).")


def _load_lazy(image: Image.Image, max_pixels: int) -> Image.Image:
    """A PIL image becomes RGB; one that was opened but not yet read is read here."""
    label = str(getattr(image, "filename", "") or f"The {image.width}×{image.height} PIL image")
    _check_kind_and_size(image, label, max_pixels)
    try:
        image.load()
    except Exception as error:
        image = _salvage(image, getattr(image, "fp", None), label, error)
    return _to_rgb(image, label)


def _salvage(image: Image.Image, stream: BinaryIO | None, label: str, error: Exception) -> Image.Image:
    """Keep what a broken file gave before it broke.

    Pillow has a switch for this, but it is one for the whole process and all its threads, so it is left alone: a JPEG
    gets the end marker that it lacks, other formats keep the rows that were decoded.
    """
    try:
        if image.format in ("JPEG", "MPO") and stream is not None:
            stream.seek(0)
            image = Image.open(io.BytesIO(stream.read() + b"\xff\xd9"))
        else:
            image.tile = []  # nothing left to decode: load() hands out the pixels there are
        image.load()
        share = _share_decoded(np.asarray(image))
    except Exception:
        share = 0.0
    if share < USABLE_SHARE:
        raise ImageError(
            f"{label} is damaged or breaks off before its first pixels ({_one_line(error)}). Get the file again."
        ) from error
    logger.info(f"{label} is damaged or breaks off ({_one_line(error)}); what could be decoded is used.")
    return image


def _share_decoded(pixels: np.ndarray) -> float:
    """The share of pixels that differ from the last one, which in a broken file is the decoder's filling."""
    other = pixels != pixels[-1, -1]
    return float((other.any(axis=-1) if other.ndim == 3 else other).mean())


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    """Bring a decoded image of any mode to upright 8-bit RGB."""
    try:
        transpose = EXIF_TRANSPOSE.get(_orientation(image))
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_grey_to_8_bit(np.asarray(image)))
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = _on_white(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return image if transpose is None else image.transpose(transpose)
    except Exception as error:
        raise ImageError(
            f"{label} (mode {image.mode}) cannot be converted to RGB ({_one_line(error)}). Save it as RGB first."
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF data says nothing about the image
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    """Put an image with transparent parts on white paper."""
    if image.mode == "La":  # premultiplied modes convert to their plain ones alone
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Scale grey values `(height, width)` of 16 bits, 32 bits or floating point to 8 bits."""
    if grey.dtype == np.uint16:
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65,535 = 255 × 257
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("grey values are not finite")
    if low >= 0 and high <= 1 and grey.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((grey.astype(np.float32) - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)


def _array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Turn an array or tensor of pixels into an RGB image."""
    is_tensor = isinstance(array, torch.Tensor)
    if is_tensor:
        array = array.detach().to("cpu", torch.float32 if array.is_floating_point() else None).numpy()
    shape = tuple(array.shape)
    label = f"The image array of shape {shape}"
    if array.ndim == 3:
        channel_axes = [axis for axis in ((0, -1) if is_tensor else (-1, 0)) if shape[axis] in (1, 3, 4)]
        array = np.moveaxis(array, channel_axes[0], -1) if channel_axes else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise ImageError(
            f"{label} is not an image. Accepted: (height, width), (height, width, channels) or (channels, height, "
            f"width) with 1, 3 or 4 channels. Give several images as a list."
        )
    values = _values_to_8_bit(array, label)
    return _to_rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values), label)


def _values_to_8_bit(array: np.ndarray, label: str) -> np.ndarray:
    """Bring pixel values to 0–255 in 8 bits: floating point up to 1 counts as 0–1."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _grey_to_8_bit(array)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise ImageError(
            f"{label} holds values from {low} to {high}. Accepted: 0–255, or 0–1 in floating point. "
            f"Pixels that are already normalised go straight to the model."
        )
    scale = 255.0 if array.dtype.kind == "f" and high <= 1 else 1.0
    return np.rint(array.astype(np.float32) * np.float32(scale)).astype(np.uint8)


def _square_or_size(size: int | dict[str, int]) -> dict[str, int]:
    """Check a size and write it as `{"height", "width"}` in pixels."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        checked = {"height": int(size["height"]), "width": int(size["width"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'The image size {size!r} is not understood. Accepted: an integer or {{"height": h, "width": w}}.'
        ) from error
    if min(checked.values()) < 1:
        raise ValueError(f"The image size {size!r} must be at least 1 pixel a side.")
    return checked


def _list_images(images: Any) -> list:
    """One image, a list of them (nested or not) or a 4-D batch becomes a flat list."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _list_images(item)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


class OFAImageProcessor(BaseImageProcessor):
    """Images of any kind and size → `pixel_values (batch, 3, height, width)` in float32.

    Args:
        do_convert_rgb: bring every image to RGB; switched off, a PIL image of another mode is refused.
        do_resize, size, resample: resize to `{"height", "width"}` pixels, whatever the image's proportions.
        do_rescale, rescale_factor: bring 0–255 to 0–1.
        do_normalize, image_mean, image_std: subtract and divide, for each channel.

    Every argument can be overridden in a call. Equal bit for bit to torchvision's `ToTensor` and `Normalize` after
    Pillow's resize.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_convert_rgb: bool = True,
        do_resize: bool = True,
        size: int | dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: list[float] | float = 0.5,
        image_std: list[float] | float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.do_convert_rgb = do_convert_rgb
        self.do_resize = do_resize
        self.size = _square_or_size(480 if size is None else size)
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = np.broadcast_to(image_mean, 3).tolist()
        self.image_std = np.broadcast_to(image_std, 3).tolist()

    def __call__(self, images: Any, **kwargs) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        do_convert_rgb: bool | None = None,
        do_resize: bool | None = None,
        size: int | dict[str, int] | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: list[float] | float | None = None,
        image_std: list[float] | float | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare one image or a list of them (see `load_image` for what an image can be).

        Returns:
            `pixel_values (batch, 3, height, width)` in float32; a numpy array unless `return_tensors` says otherwise.

        Raises:
            ImageError: an image cannot be read.
            ValueError: images of different sizes with `do_resize=False`, or none at all.
        """
        convert = self.do_convert_rgb if do_convert_rgb is None else do_convert_rgb
        resize = self.do_resize if do_resize is None else do_resize
        target = _square_or_size(self.size if size is None else size) if resize else None
        table = self._value_table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        filter_ = self.resample if resample is None else resample
        resized = [self._image(image, convert, target, filter_) for image in _list_images(images)]
        return BatchFeature({"pixel_values": _stack(resized, table)}, tensor_type=return_tensors)

    @staticmethod
    def _image(image: Any, convert: bool, size: dict[str, int] | None, resample: int) -> Image.Image:
        if not convert and isinstance(image, Image.Image) and image.mode != "RGB":
            raise ImageError(f"An image of mode {image.mode} needs do_convert_rgb=True; the model reads RGB.")
        image = load_image(image)
        if size is None or image.size == (size["width"], size["height"]):
            return image
        return image.resize((size["width"], size["height"]), resample)

    def _value_table(self, do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> np.ndarray:
        """What each of the 256 pixel values becomes: `(3, 256)`, one row a channel, in float32."""
        values = np.arange(256, dtype=np.float64)
        if self.do_rescale if do_rescale is None else do_rescale:
            values = values * (self.rescale_factor if rescale_factor is None else rescale_factor)
        table = np.tile(values.astype(np.float32), (3, 1))
        if self.do_normalize if do_normalize is None else do_normalize:
            mean = np.broadcast_to(self.image_mean if image_mean is None else image_mean, 3).astype(np.float32)
            std = np.broadcast_to(self.image_std if image_std is None else image_std, 3).astype(np.float32)
            table = (table - mean[:, None]) / std[:, None]
        return table


def _stack(images: list[Image.Image], table: np.ndarray) -> np.ndarray:
    """Look up every pixel of equally large images: `(batch, 3, height, width)` in float32."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"One batch needs images of one size but got {sorted(sizes) or 'no image at all'} (width, height). "
            f"Leave do_resize on, or give the images one by one."
        )
    width, height = sizes.pop()
    batch = np.empty((len(images), 3, height, width), dtype=np.float32)
    for pixels, image in zip(batch, images):
        for channel, values in enumerate(image.split()):
            np.take(table[channel], np.asarray(values), out=pixels[channel], mode="clip")
    return batch


OFAImageProcessor.register_for_auto_class("AutoImageProcessor")  # or saving would not carry the files of auto_map
