"""Images → `pixel_values`: resized, scaled and normalized. Codes → images. `image_loading_ofa` reads files.

Source: OFA `data/mm_data/caption_dataset.py` (RGB, square bicubic resize, mean = std = 0.5), `ocr_dataset.py`
(`ocr_resize`). The official default is 480 pixels, OFA-Chinese uses 256; the size belongs to the checkpoint.
"""

import os
import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_loading_ofa import ImageError, load_image


if TYPE_CHECKING:  # never runs: `load_image` needs the file, and transformers 4 loads only the files named here
    from .versions_ofa import http_get  # noqa: F401


FITS = ("stretch", "center", "start", "end", "random", "document")
MIN_SIDE = 64  # pixels of the shorter side of an image that keeps its shape
VQGAN_FOLDER = "vqgan"  # of a checkpoint that draws, in the format of diffusers
PIXELS_PER_CODE = 8  # a side
DOCUMENT_ROWS = 4  # into which the line of a document is cut
UNUSABLE = (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError)  # what diffusers raises for files


def load_image_decoder(name_or_path: str, revision: str | None = None) -> Any:
    """The VQGAN of a checkpoint that draws: a `diffusers.VQModel` in float32, in inference mode.

    Args:
        name_or_path: folder or Hub id of the checkpoint.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: the checkpoint has no VQGAN, or one that is damaged.
    """
    if os.path.isdir(name_or_path):
        return _load_image_decoder(os.path.abspath(name_or_path), None)
    return _load_image_decoder(name_or_path, revision)


@lru_cache(maxsize=2)
def _load_image_decoder(name_or_path: str, revision: str | None) -> Any:
    return read_image_decoder(name_or_path, revision)


def read_image_decoder(name_or_path: str, revision: str | None = None) -> Any:
    """What `load_image_decoder` gives, read anew."""
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise ImportError(
            f"Drawing needs diffusers, but: {error}. Install it with `pip install diffusers`, or `pip install "
            f"'diffusers<0.36'` where transformers is older than 5."
        ) from error
    options = {"revision": revision, "use_safetensors": True, "torch_dtype": torch.float32}
    try:
        decoder, report = VQModel.from_pretrained(
            name_or_path, subfolder=VQGAN_FOLDER, output_loading_info=True, **options
        )
    except UNUSABLE as error:
        raise ValueError(
            f"{name_or_path} has no VQGAN in {VQGAN_FOLDER}/ that can be loaded ({type(error).__name__}: {error}). "
            f"Convert the checkpoint with its VQGAN, or use one that draws."
        ) from error
    broken = (name for name, weight in decoder.named_parameters() if not bool(weight.isfinite().all()))
    if names := sorted(report["missing_keys"]) or list(broken):  # what is missing has no numbers at all
        raise ValueError(
            f"The VQGAN of {name_or_path} lacks weights, or they are no numbers: {names[0]}. Convert the checkpoint "
            f"again, or download it again."
        )
    return decoder.eval()


def check_image_decoder(decoder: Any, num_codes: int) -> None:
    """Check that a VQGAN has the codes of a checkpoint, 8 × 8 pixels each, and draws codes.

    Raises:
        ValueError: it has others, or draws only what its encoder gives.
    """
    pixels = 2 ** (len(decoder.config.block_out_channels) - 1)
    if (decoder.config.num_vq_embeddings, pixels) != (num_codes, PIXELS_PER_CODE):
        raise ValueError(
            f"The VQGAN has {decoder.config.num_vq_embeddings:,} codes of {pixels} × {pixels} pixels. Accepted: "
            f"{num_codes:,} codes of {PIXELS_PER_CODE} × {PIXELS_PER_CODE}, as the checkpoint knows them."
        )
    if not decoder.config.lookup_from_codebook:
        raise ValueError("The VQGAN draws no codes: its config.json needs lookup_from_codebook=true.")


@torch.no_grad()
def images_of_codes(decoder: Any, codes: torch.LongTensor) -> list[Image.Image]:
    """Codes → images, one after the other.

    Args:
        decoder: what `load_image_decoder` returned.
        codes: `(batch, rows, columns)`, numbers in the codebook.

    Source: OFA `models/taming/models/vqgan.py`; colors are cut down to whole numbers, not rounded, as in OFA
    `utils/eval_utils.py`, `eval_image_gen`.
    """
    images = []
    for grid in codes.to(decoder.device).split(1):
        shape = (*grid.shape, decoder.config.vq_embed_dim)
        pixels = decoder.decode(grid.contiguous(), force_not_quantize=True, shape=shape).sample[0].float()
        pixels = (255 * ((pixels.clamp(-1, 1) + 1) / 2)).to(torch.uint8)
        images.append(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))
    return images


def _square_or_size(size: int | dict[str, int]) -> dict[str, int]:
    """Check a size and return it as `{"height", "width"}` in pixels."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        checked = {"height": int(size["height"]), "width": int(size["width"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'The image size {size!r} is not valid. Accepted: an integer or {{"height": h, "width": w}}.'
        ) from error
    if min(checked.values()) < 1:
        raise ValueError(f"The image size {size!r} must be at least 1 pixel per side.")
    return checked


def _checked_fit(fit: str, size: dict[str, int] | None) -> str:
    if fit not in FITS:
        raise ValueError(f"Unknown fit {fit!r}. Accepted: {', '.join(FITS)}.")
    least = DOCUMENT_ROWS * MIN_SIDE if fit == "document" else MIN_SIDE
    if fit != "stretch" and size is not None and (size["height"] != size["width"] or size["width"] < least):
        raise ValueError(
            f"fit={fit!r} needs a square of at least {least} pixels a side but the size is {size}. Pass such a "
            f"size, or fit='stretch'."
        )
    return fit


def _list_images(images: Any) -> list:
    """Flatten one image, a list of them or a 4-D batch to a list. In a nested list each row holds one image.

    Raises:
        ValueError: a row of several images; OFA reads one per row.
    """
    if isinstance(images, (list, tuple)):
        rows = [_list_images(item) for item in images]
        if any(len(row) != 1 for item, row in zip(images, rows) if isinstance(item, (list, tuple))):
            raise ValueError(
                f"Got rows of {[len(row) for row in rows][:8]} images, but OFA reads one image per row. "
                f"Pass a flat list, one image for each text."
            )
        return [image for row in rows for image in row]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def fit_into_square(image: Image.Image, side: int, resample: int, fit: str) -> Image.Image:
    """An image in its own shape inside a square whose other pixels repeat the image's edge.

    The longer side becomes `side` pixels, the shorter one at least 64.

    Args:
        fit: the place in the square, a value of `FITS`: "random" is the original's, drawn from `random`; "document"
            takes the image for one long line, which is cut into four rows.

    Source: OFA `data/mm_data/ocr_dataset.py`, `ocr_resize`.
    """
    if fit == "document":
        line = np.asarray(image.resize((DOCUMENT_ROWS * side, MIN_SIDE), resample))
        pixels = np.concatenate(np.split(line, DOCUMENT_ROWS, axis=1))
    else:
        longer = max(image.size)
        pixels = np.asarray(image.resize([max(MIN_SIDE, int(side * (own / longer))) for own in image.size], resample))
    height, width = pixels.shape[:2]
    room = side - min(width, height)
    places = {"start": 0, "end": room, "random": random.randint(0, room) if fit == "random" else 0}
    before = places.get(fit, room // 2)
    left, top = (0, before) if width >= height else (before, 0)
    rows = (top, side - height - top)
    columns = (left, side - width - left)
    return Image.fromarray(np.pad(pixels, (rows, columns, (0, 0)), mode="edge"))


class OFAImageProcessor(BaseImageProcessor):
    """Images of any kind and size → `pixel_values (batch, 3, height, width)` in float32.

    Args:
        do_convert_rgb: convert every image to RGB; if False, a PIL image of another mode is refused.
        do_resize, size, resample: resize to `{"height", "width"}` pixels.
        fit: "stretch" ignores the aspect ratio; "center" keeps it and pads the image to a square, in which it is
            centered; "start" and "end" put it to the top or left, bottom or right; "random" gives it a random place,
            as the official OCR scripts do; "document" takes it for one line of text and cuts it into four rows.
        do_rescale, rescale_factor: scale 0–255 to 0–1.
        do_normalize, image_mean, image_std: subtract and divide, per channel.

    Every argument can be overridden in a call. Bit-equal to torchvision's `ToTensor` and `Normalize` after Pillow's
    resize.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_convert_rgb: bool = True,
        do_resize: bool = True,
        size: int | dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        fit: str = "stretch",
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
        self.fit = _checked_fit(fit, self.size)
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
        fit: str | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: list[float] | float | None = None,
        image_std: list[float] | float | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare one image or a list of them. See `load_image` for what an image can be.

        Returns:
            `pixel_values (batch, 3, height, width)` in float32: a numpy array, or as `return_tensors` says.

        Raises:
            ImageError: an image cannot be read.
            ValueError: no images, images of different sizes with `do_resize=False`, several images in one row, or an
                unknown fit.
        """
        convert = self.do_convert_rgb if do_convert_rgb is None else do_convert_rgb
        resize = self.do_resize if do_resize is None else do_resize
        target = _square_or_size(self.size if size is None else size) if resize else None
        table = self._value_table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        filter_ = self.resample if resample is None else resample
        fit = _checked_fit(self.fit if fit is None else fit, target)
        resized = [self._load(image, convert, target, filter_, fit) for image in _list_images(images)]
        return BatchFeature({"pixel_values": _stack(resized, table)}, tensor_type=return_tensors)

    @staticmethod
    def _load(image: Any, convert: bool, size: dict[str, int] | None, resample: int, fit: str) -> Image.Image:
        if not convert and isinstance(image, Image.Image) and image.mode != "RGB":
            raise ImageError(f"The image has mode {image.mode}, but the model reads RGB. Leave do_convert_rgb on.")
        image = load_image(image)
        if size is None or (image.size == (size["width"], size["height"]) and fit != "document"):
            return image
        if fit != "stretch":
            return fit_into_square(image, size["width"], resample, fit)
        return image.resize((size["width"], size["height"]), resample)

    def _value_table(self, do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> np.ndarray:
        """The float32 value of each of the 256 pixel values, per channel: `(3, 256)`."""
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
    """Look up every pixel of images of one size: `(batch, 3, height, width)` in float32."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"A batch needs images of one size but got {sorted(sizes) or 'no images'} (width, height). "
            f"Leave do_resize on, or pass the images one by one."
        )
    width, height = sizes.pop()
    batch = np.empty((len(images), 3, height, width), dtype=np.float32)
    for pixels, image in zip(batch, images):
        for channel, values in enumerate(image.split()):
            np.take(table[channel], np.asarray(values), out=pixels[channel], mode="clip")
    return batch


OFAImageProcessor.register_for_auto_class("AutoImageProcessor")  # save_pretrained copies the code
