"""Boxes as COCO JSON for labeling tools: images, annotations with scores, a category per phrase."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ofa_hf.errors import UserError
from ofa_hf.files import write_text
from ofa_hf.image_loading_ofa import URL_PREFIXES
from ofa_hf.prediction.drawing import files_of, paths_below
from ofa_hf.prediction.outputs import Box, Name
from ofa_hf.prediction.questions import Rows
from ofa_hf.tasks_ofa import Task


logger = logging.getLogger(__name__)


class CocoFile:
    """A `Report` that writes the boxes of one model as COCO JSON, atomically.

    An annotation's `bbox` is `[x, y, width, height]` in pixels of the original image; `score` is that of its box.
    Phrases that were not found have no annotation. Neither have boxes without area, which labeling tools refuse; these
    are counted in `info`. `file_name` is relative to the folder that contains all images.

    Args:
        path: ends in `.json`.

    Raises:
        UserError: another suffix, or a folder that cannot be written to.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.suffix.lower() != ".json":
            raise UserError(f"--coco {self.path} does not end in .json. Rename it.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--coco {self.path} cannot be written: {error.strerror}. Choose another folder."
            ) from error

    @property
    def record(self) -> Path:
        """The file from which a run is resumed if there is no other output."""
        return self.path.with_suffix(".jsonl")

    def owns(self, file: str) -> bool:
        return False

    def check(self, rows: Rows, task: Task) -> None:
        """Raises `UserError` if the task finds no boxes."""
        if task.answer != "boxes":
            raise UserError(f"--coco writes boxes, but the task {task.name} answers with texts. Leave it out.")

    def write(
        self,
        names: Sequence[Name],
        answers: Mapping[str, Mapping[Name, list[Box]]],
        run: Mapping[str, object],
        on_row: Callable[[], object] = lambda: None,
        columns: tuple[str, ...] = ("file", "text"),
    ) -> None:
        """Write the file; arguments are those of `Report`."""
        ((model, found),) = answers.items()
        files = list(dict.fromkeys(files_of(names, columns)))
        places = dict(zip(files, paths_below(files), strict=True))
        images, categories, annotations, numbers, num_empty = [], {}, [], {}, 0
        for name, file in zip(names, files_of(names, columns), strict=True):
            on_row()
            phrase = " ".join(name[1:]) if isinstance(name, tuple) else ""
            category = categories.setdefault(phrase, len(categories) + 1)
            boxes = found.get(name, ())
            if boxes and file not in numbers:
                numbers[file] = len(numbers) + 1
                width, height = boxes[0].size
                place = file if file.startswith(URL_PREFIXES) else Path(places[file]).as_posix()
                images.append({"id": numbers[file], "file_name": place, "width": width, "height": height})
            for box in (box for box in boxes if box.sides is not None):
                made = annotation(box, len(annotations) + 1, numbers[file], category)
                annotations += [made] if made["area"] else []
                num_empty += not made["area"]
        if num_empty:
            logger.warning(f"Left out of {self.path}: {num_empty:,} × box without area.")
        whole = {
            "info": {"description": "Boxes found by OFA", "model": model, "boxes_without_area": num_empty, **run},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": phrase} for phrase, number in categories.items()],
        }
        write_text(self.path, json.dumps(whole, ensure_ascii=False) + "\n", errors="backslashreplace")


def annotation(box: Box, number: int, image: int, category: int) -> dict:
    """A box in the format of COCO."""
    xmin, ymin, xmax, ymax = box.sides
    width, height = round(xmax - xmin, 2), round(ymax - ymin, 2)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [xmin, ymin, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "score": box.score,
    }
