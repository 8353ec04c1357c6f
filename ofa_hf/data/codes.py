"""Images → codes of a VQGAN, which a checkpoint that draws learns to generate.

`image_processing_ofa.images_of_codes` turns codes back into images.

Source: OFA `data/mm_data/image_gen_dataset.py`, `models/taming/`, `generate_code.py`.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import LongTensor, Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms
from transformers.utils import cached_file

from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import (
    PIXELS_PER_CODE,
    VQGAN_FOLDER,
    check_image_decoder,
    load_image_decoder,
    read_image_decoder,
)
from ofa_hf.models import check_device


VQGAN_FILES = ("config.json", "diffusion_pytorch_model.safetensors", "code_logits.safetensors")
CODE_LOGITS = VQGAN_FILES[-1]
WEIGHT, BIAS = "quantize.proj.weight", "quantize.proj.bias"


class ImageEncoder:
    """Turns images into codes: the encoder of a VQGAN of diffusers, and a 1 × 1 convolution for the codes' logits.

    Args:
        vqgan: a `diffusers.VQModel`. Its encoder is used, not copied; its decoder is not kept.
        code_logits: `quantize.proj.weight (codes, width, 1, 1)` and `quantize.proj.bias (codes,)`.
        name: name of the VQGAN, for messages.

    Raises:
        UserError: the logits do not fit the VQGAN.
    """

    def __init__(self, vqgan: Any, code_logits: Mapping[str, Tensor], name: str = "The VQGAN"):
        self.config, self.name = vqgan.config, name
        self.layers = nn.Sequential(vqgan.encoder, vqgan.quant_conv).eval().requires_grad_(False)
        width, number = self.config.vq_embed_dim, self.config.num_vq_embeddings
        shapes = {key: tuple(tensor.shape) for key, tensor in code_logits.items()}
        if shapes != {WEIGHT: (number, width, 1, 1), BIAS: (number,)}:
            raise UserError(
                f"{CODE_LOGITS} of {name} does not fit its VQGAN, which has {number:,} codes of width {width}. "
                f"Convert the checkpoint again."
            )
        self.weight, self.bias = (code_logits[key].to(self.device, torch.float32) for key in (WEIGHT, BIAS))

    @classmethod
    def load(cls, name: str | os.PathLike, device: str | None = None) -> "ImageEncoder":
        """The encoder of a checkpoint that draws, in float32.

        Args:
            name: folder or Hub id of the checkpoint.
            device: a PyTorch device; by default the fastest of this machine.

        Raises:
            UserError: the checkpoint has no VQGAN with code logits, or diffusers is not installed.
        """
        device, name = check_device(device), os.fspath(name)
        found = vqgan_files(name)
        if CODE_LOGITS not in found:
            raise UserError(
                f"{name} has no {VQGAN_FOLDER}/{CODE_LOGITS}, which turns images into codes. Convert the checkpoint "
                f"with its VQGAN: `ofa-hf convert … --vqgan last.ckpt --vqgan-config model.yaml`."
            )
        vqgan = load_vqgan(os.path.abspath(name) if os.path.isdir(name) else name, read_image_decoder)
        encoder = cls(vqgan, load_file(found[CODE_LOGITS]), name)
        return encoder.to(device)

    def to(self, device: str | torch.device) -> "ImageEncoder":
        self.layers.to(device)
        self.weight, self.bias = self.weight.to(device), self.bias.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.layers.parameters()).device

    @property
    def digest(self) -> str:
        """Digest of all weights that the codes depend on."""
        digest = hashlib.sha256()
        weights = {**self.layers.state_dict(), WEIGHT: self.weight, BIAS: self.bias}
        for name, tensor in weights.items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_codes(self, number: int) -> None:
        """Check that it has the codes of a checkpoint, for 8 × 8 pixels each.

        Raises:
            UserError: it has others.
        """
        try:
            check_image_decoder(self, number)
        except ValueError as error:
            raise UserError(f"{self.name}: {error} Use the checkpoint with the VQGAN that belongs to it.") from error

    def codes(
        self,
        images: Sequence[Image.Image],
        size: int,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> LongTensor:
        """Images → codes `(images, size / 8, size / 8)`, row by row from the upper left corner.

        Args:
            images: images of any mode and size; the square in the middle is used.
            size: pixels a side, a multiple of 8.
            sample: sample each code, as the original does, instead of taking the most probable one.
            generator: generator for sampling, on the encoder's device.
        """
        pixels = torch.stack([image_pixels(image, size) for image in images])
        return self.codes_of_pixels(pixels, sample, generator)

    def codes_of_pixels(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> LongTensor:
        """Results of `image_pixels`, `(images, 3, height, width)` → codes `(images, height / 8, width / 8)`.

        Source of the samples: `gumbel_softmax` of OFA `models/taming/modules/vqvae/quantize.py`.
        """
        logits = self.logits(pixels)
        if sample:
            noise = torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_(generator=generator)
            logits = logits - noise.log()
        return logits.argmax(1).cpu()

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """`(images, 3, height, width)` → `(images, codes, height / 8, width / 8)`, in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return nn.functional.conv2d(self.layers(pixels.to(self.device, torch.float32)), self.weight, self.bias)


def image_pixels(image: Image.Image, size: int, crop: bool = True) -> Tensor:
    """An image → `(3, size, size)` float32 from −1 to 1.

    Args:
        size: pixels of the shorter side, a multiple of 8.
        crop: use the square in the middle. Otherwise the image keeps its aspect ratio, as in the original, and gives
            a grid of codes that no checkpoint draws.

    Source: OFA `generate_code.py`.
    """
    if size < PIXELS_PER_CODE or size % PIXELS_PER_CODE:
        raise ValueError(f"Images of {size} pixels have no whole codes. Accepted: multiples of {PIXELS_PER_CODE}.")
    image = image.convert("RGB")
    if crop and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return 2 * transforms.to_tensor(transforms.resize(image, size, InterpolationMode.LANCZOS)) - 1


def load_vqgan(name: str, load: Callable[[str], Any] = load_image_decoder) -> Any:
    """The VQGAN of a model that draws.

    Args:
        load: `load_image_decoder`, or `read_image_decoder` for a copy outside of the cache.

    Raises:
        UserError: it has none, or diffusers is missing.
    """
    try:
        return load(name)
    except (ImportError, ValueError) as error:
        advice = " It comes with `pip install 'ofa-hf[draw]'`." if isinstance(error, ImportError) else ""
        raise UserError(f"{error}{advice}") from error


def vqgan_files(name: str) -> dict[str, Path]:
    """Those of the VQGAN's files that a checkpoint has, in its folder or on the Hub."""
    options = {"subfolder": VQGAN_FOLDER, "_raise_exceptions_for_missing_entries": False}
    try:
        found = {file: cached_file(name, file, **options) for file in VQGAN_FILES}
    except OSError as error:
        raise UserError(f"The VQGAN of {name} cannot be fetched: {' '.join(str(error).split())[:300]}") from error
    return {file: Path(path) for file, path in found.items() if path}
