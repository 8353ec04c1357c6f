"""Turn training images of a drawing task into codes, once; they are kept on disk for later runs.

Each process of a run starts with its own share and then continues with the rest, so that several are faster and none
has to wait for another.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils import tqdm

from ofa_hf.data.answers import AnswerRule
from ofa_hf.data.build import Recipe, build, cache_root, refuse_unwritable_cache, stored_problems
from ofa_hf.data.codes import ImageEncoder, image_pixels
from ofa_hf.data.shards import Options, RowRecord, RowTexts
from ofa_hf.data.target_index import TargetIndex
from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE
from ofa_hf.prediction.reading import read_ahead
from ofa_hf.tables.problems import report_of
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.encoder_cache import images_fingerprint
from ofa_hf.training.row_store import RowStore


FORMAT_VERSION = 1  # part of every digest: increase it when the same images give other codes
AT_ONCE = {"cpu": 2}  # images that are encoded together; on other devices
AT_ONCE_ELSEWHERE = 16
FULL_DISK_ADVICE = (
    "The existing codes stay valid. Free some space, or choose another disk with cache_dir or the environment "
    "variable HF_HOME, and run the same command again."
)


@dataclass
class CodeMaker:
    """Converts rows with images to rows with codes.

    Args:
        task: a task that draws, with one field.
        size: pixels a side.
        sample_seed: sample the codes, as the original does; None takes the most probable ones.
        process, processes: number of this process of the run, and how many there are.
    """

    encoder: ImageEncoder
    task: Task
    size: int
    cache_dir: str | None = None
    sample_seed: int | None = None
    process: int = 0
    processes: int = 1

    def __call__(self, rows: Dataset) -> Dataset:
        """Rows `{"id", <field>, "targets": [codes]}`, one for each text of an image.

        Raises:
            UserError: an image cannot be read any more, or the disk is full.
        """
        identity = {
            "format": FORMAT_VERSION,
            "encoder": self.encoder.digest,
            "size": self.size,
            "sample_seed": self.sample_seed,
            "images": images_fingerprint(rows),
        }
        root, side = cache_root(self.cache_dir), self.size // PIXELS_PER_CODE
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        with explain_full_disk(root, FULL_DISK_ADVICE):
            refuse_unwritable_cache(root)
            store = RowStore(root / f"codes-{digest}", len(rows), (side, side), torch.int32)
            self._encode_missing(rows, store)
        return self._build(rows, store, identity)

    # -- images to codes

    def _encode_missing(self, rows: Dataset, store: RowStore) -> None:
        first = len(rows) * self.process // self.processes
        order = [*range(first, len(rows)), *range(first)]
        total = len(rows) - store.num_written
        if not total:
            return
        images = rows.select_columns("image")
        at_once = 1 if self.sample_seed is not None else AT_ONCE.get(self.encoder.device.type, AT_ONCE_ELSEWHERE)
        wanted = ((number, images[number]["image"]) for number in order if number not in store)
        with tqdm(total=total, unit="image", desc="images to codes", disable=self.process > 0) as bar:
            read = read_ahead(wanted, lambda one: image_pixels(load_image(one[1]), self.size), 3 * at_once)
            read = ((number, pixels) for (number, _), pixels in read)
            while batch := list(islice(read, at_once)):
                self._encode(rows, batch, store)
                bar.update(min(len(batch), total - bar.n))
        store.flush()

    def _encode(self, rows: Dataset, batch: list[tuple[int, Any]], store: RowStore) -> None:
        for number, pixels in batch:
            if isinstance(pixels, ImageError):
                raise UserError(
                    f"The image of {rows[number]['id']} can no longer be read: {pixels} Run the same command again to "
                    f"have it left out."
                )
        numbers, pixels = zip(*batch)
        generator = None
        if self.sample_seed is not None:  # by row, so that the result does not depend on the process
            generator = torch.Generator(self.encoder.device).manual_seed(self.sample_seed + numbers[0])
        codes = self.encoder.codes_of_pixels(torch.stack(pixels), generator is not None, generator)
        store.write(numbers, codes)

    # -- codes to rows

    def _build(self, rows: Dataset, store: RowStore, identity: dict[str, Any]) -> Dataset:
        """The rows with codes in Arrow files, cached, with the report of the rows with images."""
        report, (field,) = report_of(rows), self.task.fields
        rule = AnswerRule("image", codes=(store.row_bytes // 4, self.encoder.config.num_vq_embeddings))
        texts = rows.select_columns(["id", "targets"])
        recipe = Recipe(
            name="image-codes",
            identity={"source": "image codes", **identity, "texts": texts._fingerprint},
            read_targets=lambda index: stored_problems(Path(report.report_file)),
            make_shards=lambda index: [CodedRows(texts, store, field)],
            total=len(rows),
            notes=lambda: {name: getattr(report, name) for name in ("assumed", "repaired", "left_out")},
        )
        options = Options(check_images=False, fields=(field,), has_images=False, rule=rule.as_dict())
        return build(recipe, options, 0, self.cache_dir)


@dataclass
class CodedRows:
    """Rows of texts whose codes are in a store."""

    rows: Dataset
    store: RowStore
    field: str
    file: str = "the images"
    lines: int = 0

    def read(self, index: TargetIndex | None, advance: Callable[[int], None]) -> Iterator[RowRecord]:
        for number, row in enumerate(self.rows):
            codes = " ".join(map(str, self.store[number].flatten().tolist()))
            for place, text in enumerate(row["targets"], 1):
                name = row["id"] if len(row["targets"]) == 1 else f"{row['id']}#{place}"
                yield RowRecord(name, number + 1, None, RowTexts({self.field: text}, [codes]))
            advance(1)
