"""Rank images by how well they fit a text, with any CLIP that transformers loads, English or Chinese.

Source: OFA `utils/eval_utils.py`, `eval_image_gen`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ofa_hf.errors import UserError
from ofa_hf.versions_ofa import PILLOW_BACKEND


class ClipScorer:
    """Scores images by the cosine between CLIP's features of image and text.

    Args:
        name: folder or Hub id of a CLIP. Images are prepared with Pillow, as in the original.

    Raises:
        UserError: there is no such model, or it is no CLIP.
    """

    def __init__(self, name: str, device: str | torch.device | None = None):
        try:
            self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
            self.images = AutoImageProcessor.from_pretrained(name, **PILLOW_BACKEND)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name} cannot be loaded as a CLIP: {reason}. Give a folder or Hub id of one.") from error
        if not all(hasattr(self.model, f"get_{kind}_features") for kind in ("image", "text")):
            kind = self.model.config.model_type
            raise UserError(f"{name} is a model of the kind {kind!r}, not a CLIP, which compares images with texts.")
        self.device = torch.device(device or "cpu")
        self.model.to(self.device)
        text_config = getattr(self.model.config, "text_config", self.model.config)
        self.max_tokens = getattr(text_config, "max_position_embeddings", self.tokenizer.model_max_length)

    @torch.no_grad()
    def __call__(self, text: str, images: Sequence[Image.Image]) -> list[float]:
        """Cosines between a text and images.

        Raises:
            ValueError: the text has more tokens than CLIP reads.
        """
        tokens = self.tokenizer(text.replace("/", ""), return_tensors="pt", truncation=False)
        if (length := tokens["input_ids"].shape[1]) > self.max_tokens:
            raise ValueError(f"the text has {length} tokens for CLIP, which reads {self.max_tokens}. Shorten it.")
        pixels = self.images([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        of_text = normalized(self.model.get_text_features(**tokens.to(self.device)))
        of_images = normalized(self.model.get_image_features(pixel_values=pixels.to(self.device)))
        return (of_images @ of_text[0]).tolist()


def normalized(features: Any) -> torch.Tensor:
    """Features of length 1, from what transformers 4 and 5 return: a tensor, or an output that holds it."""
    features = getattr(features, "pooler_output", features).float()
    return features / features.norm(dim=-1, keepdim=True)
