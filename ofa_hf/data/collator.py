"""Rows → batches with exactly the arguments of `forward`. The only place in training where images are decoded."""

from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import LongTensor
from transformers.image_processing_utils import BatchFeature

from ofa_hf.data.images import open_image
from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import ImageError
from ofa_hf.processing_ofa import OFAProcessor


IGNORED = -100  # label that the loss leaves out
# What a batch holds of rows whose encoder outputs may be known: `(batch,)` numbers in the data set, `(batch,)` flags
# of those that are known, and their tensors; `pixel_values` are of the others alone, and missing if there are none.
ROW_NUMBERS, IS_ENCODED, ENCODED = "row_numbers", "is_encoded", "encoded"
MAX_WORKERS = 256  # slots for counting, one a data loader worker


@dataclass
class OFACaptionCollator:
    """Rows `{"image", "caption"}` → `pixel_values`, `input_ids`, `attention_mask`, `labels (batch, tokens)`.

    An image is a PIL image, a path, bytes or the stored form `{"bytes", "path"}`. Captions longer than allowed are
    cut, keeping `</s>`, and counted in `num_cut`, across data loader workers.
    """

    processor: OFAProcessor
    max_caption_tokens: int = 30  # with the end token
    _cut: torch.Tensor = field(default_factory=lambda: torch.zeros(MAX_WORKERS, dtype=torch.long), repr=False)

    def __post_init__(self) -> None:
        if self.max_caption_tokens < 2:
            raise ValueError(f"max_caption_tokens={self.max_caption_tokens} leaves no caption: give at least 2.")
        self._cut.share_memory_()  # workers count in slots of their own

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        batch = self.encode_images(rows)
        batch["labels"] = self.encode_captions([row["caption"] for row in rows])
        return batch

    @property
    def num_cut(self) -> int:
        """How many captions have been cut so far."""
        return int(self._cut.sum())

    def encode_images(self, rows: list[dict[str, Any]]) -> BatchFeature:
        images = [open_row_image(row) for row in rows if "encoded" not in row]
        if "row_number" not in rows[0]:
            return self.processor(images=images, return_tensors="pt")
        batch = self.processor(text=[self.processor.prompt] * len(rows), return_tensors="pt")
        if images:
            batch["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        encoded = [row["encoded"] for row in rows if "encoded" in row]
        if encoded:
            batch[ENCODED] = torch.stack(encoded)
        batch[IS_ENCODED] = torch.tensor(["encoded" in row for row in rows])
        batch[ROW_NUMBERS] = torch.tensor([row["row_number"] for row in rows])
        return batch

    def encode_captions(self, captions: list[str]) -> LongTensor:
        """Labels `(captions, tokens)`, each ending with `</s>`, padded with −100."""
        labels = self.processor.encode_labels(captions, self.max_caption_tokens + 1)
        too_long = (labels[:, self.max_caption_tokens :] != IGNORED).any(1)
        if too_long.any():
            labels[too_long, self.max_caption_tokens - 1] = labels[too_long, self.max_caption_tokens]  # keep the end
            self._count(int(too_long.sum()))
        return labels[:, : self.max_caption_tokens]

    def _count(self, number: int) -> None:
        worker = torch.utils.data.get_worker_info()
        self._cut[(worker.id + 1) % MAX_WORKERS if worker else 0] += number


@dataclass
class OFAGroupedCollator(OFACaptionCollator):
    """Rows `{"image", "captions"}` → tensors of B images, and `labels (B · k, tokens)` in the order of the images.

    Labels `i · k … (i + 1) · k − 1` belong to image `i`; k is the largest group of the batch unless
    `captions_per_image` fixes it. Shorter groups are filled up with rows of nothing but −100, which the loss leaves
    out.
    """

    captions_per_image: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        batch = self.encode_images(rows)
        groups = [row["captions"] for row in rows]
        size = self.captions_per_image or max(1, *map(len, groups), 1)
        if max(map(len, groups)) > size:
            raise ValueError(f"A row has {max(map(len, groups))} captions but captions_per_image is {size}.")
        captions = [caption for group in groups for caption in group]
        encoded = self.encode_captions(captions) if captions else torch.full((0, 1), IGNORED)
        slots = [row * size + slot for row, group in enumerate(groups) for slot in range(len(group))]
        labels = encoded.new_full((len(rows) * size, encoded.shape[1]), IGNORED)
        labels[slots] = encoded
        batch["labels"] = labels
        return batch


def open_row_image(row: dict[str, Any]) -> PIL.Image.Image:
    """Decode a row's image.

    Raises:
        UserError: it cannot be decoded; names the row's id.
    """
    try:
        return open_image(row["image"])
    except ImageError as error:
        name = row.get("image_id", "a row without id")
        raise UserError(
            f"The image of {name} is broken: {error} Load the data with check_images on to leave it out."
        ) from error
