"""Turn rows into batches of exactly the arguments of `forward`. In training, images are decoded only here."""

from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import LongTensor
from transformers.image_processing_utils import BatchFeature

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.processing_ofa import IGNORED_LABEL, OFAProcessor


# Keys of a batch whose rows may have known encoder results: `(batch,)` row numbers, `(batch,)` flags of the known
# rows, and their tensors. `pixel_values` then holds only the other rows and is absent if there are none.
ROW_NUMBERS, IS_ENCODED, ENCODED = "row_numbers", "is_encoded", "encoded"
MAX_WORKERS = 256  # slots for counting, one per data loader worker


@dataclass
class OFACollator:
    """Rows of a task → `pixel_values`, `input_ids`, `attention_mask` of B rows, and `labels (B · k, tokens)`.

    Labels `i · k … (i + 1) · k − 1` belong to row `i`. Rows with fewer than k targets are filled up with labels of
    nothing but −100, which the loss ignores. Targets longer than allowed are cut before `</s>` and counted in
    `num_cut`, across data loader workers.

    Args:
        task: fills its prompt with the fields of each row. None: the checkpoint's default task.
        max_target_tokens: with the end token.
        targets_per_row: k; 0 takes the largest number of targets in the batch.
    """

    processor: OFAProcessor
    task: str | None = None
    max_target_tokens: int = 30
    targets_per_row: int = 0
    _cut: torch.Tensor = field(default_factory=lambda: torch.zeros(MAX_WORKERS, dtype=torch.long), repr=False)

    def __post_init__(self) -> None:
        if self.max_target_tokens < 2:
            raise ValueError(
                f"max_target_tokens={self.max_target_tokens} leaves no room for a target; use at least 2."
            )
        self._cut.share_memory_()  # each worker counts in its own slot

    @property
    def num_cut(self) -> int:
        """Number of targets cut so far."""
        return int(self._cut.sum())

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        batch = self.encode_inputs(rows)
        groups = [row["targets"] for row in rows]
        size = self.targets_per_row or max(1, *map(len, groups), 1)
        if max(map(len, groups)) > size:
            raise ValueError(f"A row has {max(map(len, groups))} targets but targets_per_row is {size}.")
        targets = [target for group in groups for target in group]
        encoded = self.encode_targets(targets) if targets else torch.full((0, 1), IGNORED_LABEL)
        slots = [row * size + slot for row, group in enumerate(groups) for slot in range(len(group))]
        labels = encoded.new_full((len(rows) * size, encoded.shape[1]), IGNORED_LABEL)
        labels[slots] = encoded
        batch["labels"] = labels
        return batch

    def encode_inputs(self, rows: list[dict[str, Any]]) -> BatchFeature:
        """Prompts and images of rows; of rows with known encoder results, those results."""
        batch = self.processor(text=[self.prompt(row) for row in rows], return_tensors="pt")
        images = [open_row_image(row) for row in rows if "image" in row]
        if images:
            options = self.processor.find_task(self.task).image
            batch.update(self.processor.image_processor(images, return_tensors="pt", **options))
        if "row_number" not in rows[0]:
            return batch
        encoded = [row["encoded"] for row in rows if "encoded" in row]
        if encoded:
            batch[ENCODED] = torch.stack(encoded)
        batch[IS_ENCODED] = torch.tensor(["encoded" in row for row in rows])
        batch[ROW_NUMBERS] = torch.tensor([row["row_number"] for row in rows])
        return batch

    def prompt(self, row: dict[str, Any]) -> str:
        """The task's prompt filled with the row's fields."""
        fields = self.processor.find_task(self.task).fields
        return self.processor.prompt_for(self.task, **{name: row[name] for name in fields})

    def encode_targets(self, targets: list[str]) -> LongTensor:
        """Labels `(targets, tokens)`, each ending with `</s>`, padded with −100."""
        labels = self.processor.encode_labels(targets, self.max_target_tokens + 1)
        too_long = (labels[:, self.max_target_tokens :] != IGNORED_LABEL).any(1)
        if too_long.any():
            labels[too_long, self.max_target_tokens - 1] = labels[too_long, self.max_target_tokens]  # keep the end
            self._count(int(too_long.sum()))
        return labels[:, : self.max_target_tokens]

    def _count(self, number: int) -> None:
        worker = torch.utils.data.get_worker_info()
        self._cut[(worker.id + 1) % MAX_WORKERS if worker else 0] += number


def open_row_image(row: dict[str, Any]) -> PIL.Image.Image:
    """Decode a row's image.

    Raises:
        UserError: the image cannot be decoded. Names the row's id.
    """
    try:
        return load_image(row["image"])
    except ImageError as error:
        name = row.get("id", "a row without id")
        raise UserError(
            f"The image of {name} is broken: {error} Load the data with check_images=True to skip it."
        ) from error
