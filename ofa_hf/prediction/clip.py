"""Rank images by how well they fit a text, with any CLIP that transformers loads, English or Chinese.

Source: OFA `utils/eval_utils.py`, `eval_image_gen`.
"""

import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ofa_hf.errors import UserError
from ofa_hf.models import explain_failure
from ofa_hf.versions_ofa import PILLOW_BACKEND, clip_text_features, features_of


ADVICE = "Give a folder or Hub id of a CLIP."
NO_CODE = {"trust_remote_code": False}  # and no question about it


class ClipScorer:
    """Scores images by the cosine between CLIP's features of image and text.

    Args:
        name: folder or Hub id of a CLIP. Images are prepared with Pillow, as in the original.

    Raises:
        UserError: there is no such model, or it is no CLIP.
    """

    def __init__(self, name: str, device: str | torch.device | None = None):
        if not os.path.isdir(name) and (os.path.exists(name) or name.startswith((".", "/", "~"))):
            raise UserError(f"The CLIP {name} is no folder. {ADVICE}")
        with explain_failure(f"The CLIP {name}", ADVICE):
            options = {"dtype": torch.float32, "output_loading_info": True, **NO_CODE}
            self.model, report = AutoModel.from_pretrained(name, **options)
            self._check(name, report["missing_keys"])
            self.images = AutoImageProcessor.from_pretrained(name, **PILLOW_BACKEND, **NO_CODE)
            self.tokenizer = AutoTokenizer.from_pretrained(name, **NO_CODE)
        if len(self.tokenizer) <= len(self.tokenizer.all_special_tokens):  # what transformers makes of no file
            raise UserError(f"The tokenizer of the CLIP {name} knows no words. Download its vocabulary, too.")
        self.device = torch.device(device or "cpu")
        self.model.to(self.device).eval()
        text_config = getattr(self.model.config, "text_config", self.model.config)
        self.max_tokens = getattr(text_config, "max_position_embeddings", self.tokenizer.model_max_length)

    def _check(self, name: str, missing: Collection[str]) -> None:
        if not all(hasattr(self.model, f"get_{kind}_features") for kind in ("image", "text")):
            kind = self.model.config.model_type
            raise UserError(f"{name} is a model of the kind {kind!r}, not a CLIP, which compares images with texts.")
        if missing:  # which transformers fills with random numbers
            raise UserError(f"The CLIP {name} lacks weights, such as {sorted(missing)[0]}. Download it again.")
        if broken := [key for key, one in self.model.named_parameters() if not bool(one.isfinite().all())]:
            raise UserError(
                f"The CLIP {name} has weights that are no numbers, such as {broken[0]}. Download it again."
            )

    def __call__(self, text: str, images: Sequence[Image.Image]) -> list[float]:
        """Cosines between a text and images.

        Raises:
            ValueError: the text has more tokens than CLIP reads.
        """
        of_text, of_images = map(normalized, (self.text_features(text), self.image_features(images)))
        return (of_images @ of_text[0]).tolist()

    def read(self, text: str) -> Any:
        """A text as CLIP reads it: ids and mask.

        Raises:
            ValueError: it has more tokens than CLIP reads.
        """
        tokens = self.tokenizer(clip_text(text), return_tensors="pt", truncation=False)
        if (length := tokens["input_ids"].shape[1]) > self.max_tokens:
            raise ValueError(
                f"the text {text[:60]!r}… has {length} tokens for CLIP, which reads {self.max_tokens}. Shorten it."
            )
        return tokens

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """`(images, 3, height, width)`"""
        return self.images([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def text_features(self, text: str) -> torch.Tensor:
        """`(1, D)`"""
        return clip_text_features(self.model, self.read(text).to(self.device)).float()

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """`(images, D)`"""
        return features_of(self.model.get_image_features(pixel_values=self.pixels(images).to(self.device))).float()


def clip_text(text: str) -> str:
    """The text that CLIP reads: without slashes, as in the original, and with single blanks."""
    return " ".join(text.split()).replace("/", "")


def normalized(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1."""
    return features / features.norm(dim=-1, keepdim=True)
