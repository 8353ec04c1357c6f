"""Load data from files of any kind: MUGE, tables with folders of images, packed shards, and public sets by name."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from ofa_hf.data.answers import AnswerRule, TargetForm
from ofa_hf.data.build import cache_root
from ofa_hf.data.muge import load_muge
from ofa_hf.data.official import FORMS, load_official
from ofa_hf.data.tables import load_rows, load_table
from ofa_hf.errors import UserError
from ofa_hf.images.links import is_link
from ofa_hf.images.packed import is_packed
from ofa_hf.tables.columns import Columns, find_columns, image_column_of, missing_columns
from ofa_hf.tables.problems import Problem
from ofa_hf.tables.public import muge_files
from ofa_hf.tables.table_files import open_table
from ofa_hf.tasks_ofa import Task


MUGE_SUFFIX = ".tsv"
IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "tif", "tiff", "image")  # of a shard's files
SAMPLE_ROWS = 100  # in which the first image of a table is looked for
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # as WebDataset's users write them
TEXT_KEYS = ("txt", "caption", "text", "json")


@dataclass(frozen=True)
class TableForm:
    """The user's options for a table; None is detected from the table.

    Args:
        cache_dir: folder for prepared, downloaded and unpacked data. Default: the cache of `datasets`.
    """

    encoding: str | None = None
    separator: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    id_column: str | None = None
    cache_dir: str | None = None

    def reading(self) -> dict[str, str | None]:
        """Options of `open_table`."""
        return {"encoding": self.encoding, "separator": self.separator}

    def columns(self) -> dict[str, str | None]:
        """Options of `load_table`."""
        return {
            "image_column": self.image_column,
            "target_column": self.caption_column,
            "id_column": self.id_column,
        }


def load_source(
    captions: str | Path,
    images: str | Path | None = None,
    *,
    fields: Sequence[str] = (),
    needs_images: bool = True,
    form: TableForm | None = None,
    targets: TargetForm | None = None,
    **options: Any,
) -> Dataset:
    """Load rows of a task from files of any kind.

    Args:
        captions: a table or public set, see `open_table`; `muge:FOLDER@train`; a folder of images with texts next to
            them; MUGE's captions; shards of WebDataset (`.tar`, or a pattern such as `shards/*.tar`).
        images: the folder that the table names, also packed; MUGE's image file. None where `captions` has the
            images, or names them by links or complete paths.
        fields: columns that fill the task's prompt.
        form: the user's options for the table.
        targets: form of the targets, if they are not just texts.
        options: `num_proc`, `strict`, `check_images`, `require_targets`, as in `load_muge`.

    Raises:
        UserError: see `load_table` and `load_muge`; images are missing.
    """
    form = form or TableForm()
    if muge := muge_files(captions):
        captions, images = muge
    if images is not None and Path(images).suffix == MUGE_SUFFIX:
        if fields:
            raise UserError(
                f"The task needs the columns {', '.join(fields)}, which MUGE's files do not have. Pass a table and a "
                "folder of images."
            )
        return load_muge(captions, images, **form.reading(), **form.columns(), cache_dir=form.cache_dir, **options)
    options["targets"] = targets
    if images is not None and needs_images and stored_images(captions, form):
        raise UserError(f"{captions} holds its images, but {images} was also given. Leave that out.")
    if images is None and needs_images:
        if are_shards(captions):
            return load_shards(str(captions), fields=fields, form=form, **options)
        if Path(captions).is_dir():
            images = captions
        elif stored_images(captions, form):
            return load_parquet(captions, fields=fields, form=form, **options)
        elif names_complete(captions, form):
            images = cache_root(form.cache_dir) / "no_images"
            images.mkdir(parents=True, exist_ok=True)
    return load_table(
        captions, images, fields=fields, **form.reading(), **form.columns(), cache_dir=form.cache_dir, **options
    )


@dataclass(frozen=True)
class Files:
    """Files of rows, as given by the user.

    Args:
        captions, images: see `load_source`, or an official TSV and None.
        is_official: the first is an official file; by default detected from its suffix for tasks with images.
        selected_cols, more_fields: see `load_official`.
        is_test: the rows are for scoring.
        images_option: option with which the user gives the images, for messages.
    """

    captions: str | Path
    images: str | Path | None = None
    form: TableForm = field(default_factory=TableForm)
    is_official: bool = False
    selected_cols: str | None = None
    is_test: bool = False
    images_option: str = "train_image_file"


def as_read(task: Task) -> Task:
    """The task for reading data. Data of a task that draws is read like captions, as images with texts."""
    if task.answer != "image":
        return task
    prompts = dict.fromkeys(task.prompts, "")
    about = {"target": next(iter(task.fields), "text"), "metric": "caption", "cleaning": "", "longer_prompts": {}}
    return replace(task, prompts=prompts, answer="text", needs_image=True, image={}, **about)


def has_codes(files: Files, task: Task) -> bool:
    """Whether files of a task that draws contain codes instead of images, as official files do."""
    return task.answer == "image" and is_original(files, task)


def is_original(files: Files, task: Task, has_cells: bool = False) -> bool:
    """Whether files are official ones, as the user or the suffix says."""
    is_alone = files.images is None and as_read(task).needs_image and not has_cells
    return files.is_official or (is_alone and Path(files.captions).suffix == MUGE_SUFFIX and task.name in FORMS)


def load_task_files(files: Files, task: Task, language: str, targets: TargetForm, **options: Any) -> Dataset:
    """Load rows of a task from official files, or from those of `load_source`.

    Rows of a task that draws have its text and the codes of its image as the target, if the files have codes;
    otherwise they have an image, and its texts as targets.

    Args:
        targets: what they are, see `TargetForm.of`.
        options: as for `load_source`.

    Raises:
        UserError: see `load_source` and `load_official`.
    """
    if files.is_official and files.images is not None:
        raise UserError(
            f"Official files contain their images, but {files.images} was also given. Leave {files.images_option} "
            f"out, or data_format."
        )
    if is_original(files, task, bool(targets.cells)):
        named = {"selected_cols": files.selected_cols, "more_fields": targets.more_fields, "is_test": files.is_test}
        named["rule"] = targets.rule if task.answer == "image" else AnswerRule.of(task)
        return load_official(files.captions, task, language, **named, **options, cache_dir=files.form.cache_dir)
    reading = as_read(task)
    targets = targets if reading is task else TargetForm.of(reading)
    if files.images is None and reading.needs_image and not has_its_images(files.captions, files.form):
        raise UserError(
            f"{files.images_option} is missing: the task {task.name} needs images. Pass MUGE's image file, or the "
            f"folder of the images that {files.captions} names."
        )
    options |= {"fields": reading.fields, "needs_images": reading.needs_image, "form": files.form}
    return load_source(files.captions, files.images, **options, targets=targets)


def has_its_images(captions: str | Path, form: TableForm) -> bool:
    """Whether a source of captions needs no folder of images beside it."""
    if muge_files(captions) or are_shards(captions) or Path(captions).is_dir():
        return True
    return stored_images(captions, form) or names_complete(captions, form)


def stored_images(path: str | Path, form: TableForm) -> bool:
    """Whether a parquet file contains images rather than their names."""
    return Path(path).suffix.lower() == ".parquet" and isinstance(first_image(path, form), (bytes, dict))


def names_complete(path: str | Path, form: TableForm) -> bool:
    """Whether a table names its images by links or by complete paths on this machine."""
    name = first_image(path, form)
    return isinstance(name, str) and (is_link(name) or (os.path.isabs(name) and os.path.isfile(name)))


def first_image(path: str | Path, form: TableForm) -> Any:
    """What the image column of a table first holds; None if its first rows have none.

    Raises:
        UserError: there is no such column.
    """
    table = open_table(path, **form.reading())
    column = image_column_of(table.columns, form.image_column)
    if column is None:
        raise missing_columns(str(path), [form.image_column or "image"], table.columns)
    rows = (row for _, row in islice(table, SAMPLE_ROWS) if not isinstance(row, Problem))
    return next((row[column] for row in rows if row.get(column)), None)


def load_parquet(path: str | Path, *, fields: Sequence[str], form: TableForm, **options: Any) -> Dataset:
    """Rows of a parquet file that holds the images."""
    rows = Dataset.from_parquet(str(path), cache_dir=form.cache_dir)
    return load_dataset_rows(rows, str(path), fields=fields, form=form, kind="parquet", **options)


def load_dataset_rows(
    rows: Dataset,
    source: str,
    *,
    fields: Sequence[str],
    form: TableForm,
    has_images: bool = True,
    targets: TargetForm | None = None,
    kind: str = "data set",
    **options: Any,
) -> Dataset:
    """Rows of a data set whose columns have common names or are named by the user.

    Args:
        kind: kind of the data set, for the report.
    """
    wanted = Columns(form.image_column, form.caption_column, form.id_column, tuple(fields))
    wanted = replace(wanted, usual_target=targets.column) if targets else wanted
    has_cells = bool(targets and targets.cells)
    columns = find_columns(source, rows.column_names, wanted, has_images=has_images, needs_targets=not has_cells)
    renamed = {column: field for field, column in columns.by_field().items() if column != field}
    return load_rows(
        rows.rename_columns(renamed),
        image_column=columns.image,
        target_column=None if has_cells else columns.target,
        id_column=columns.id,
        fields=fields,
        cache_dir=form.cache_dir,
        targets=targets,
        assumed={"kind": kind, "encoding": None, "separator": None, "columns": columns.assumed()},
        **options,
    )


def are_shards(captions: str | Path) -> bool:
    """Whether a name stands for shards of WebDataset."""
    return is_packed(captions) or "*" in str(captions) or NUMBERS.search(str(captions)) is not None


def shard_files(pattern: str) -> list[str]:
    """The files of a pattern, in which `*` stands for anything, and `{000..123}` for numbers."""
    if not (numbers := NUMBERS.search(pattern)):
        return sorted(glob(pattern)) if "*" in pattern else [pattern]
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    parts = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    names = (f"{pattern[: numbers.start()]}{part}{pattern[numbers.end() :]}" for part in parts)
    return [file for name in names for file in shard_files(name)]


def load_shards(pattern: str, *, fields: Sequence[str] = (), form: TableForm, **options: Any) -> Dataset:
    """Rows of WebDataset shards: tar files that hold an image and a text or JSON file under each key.

    Raises:
        UserError: there is no such file, or it holds no images with texts.
    """
    files = shard_files(pattern)
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise UserError(f"{pattern} names {missing[0]}, which does not exist. Name the shards that are there.")
    if not files:
        raise UserError(f"No file fits {pattern}. Pass the path of a .tar file, or a pattern such as shards/*.tar.")
    try:
        rows = datasets.load_dataset(
            "webdataset", data_files={"train": files}, split="train", cache_dir=form.cache_dir
        )
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"{pattern} cannot be read as shards of WebDataset ({error}). A shard is a .tar with an image and a .txt "
            "or .json file of the same name for each row; pass a folder of images together with a table."
        ) from error
    names = rows.column_names
    image = form.image_column or next((name for name in IMAGE_KEYS if name in names), None)
    text = form.caption_column or next((name for name in TEXT_KEYS if name in names), None)
    if image is None or text is None:
        raise UserError(
            f"{pattern} holds files ending in {', '.join(name for name in names if name[:2] != '__')}, but needs an "
            "image and a .txt or .json file under each key. Name them with --image_column and --caption_column."
        )
    if text == "json":
        rows = rows.flatten()
        rows = rows.rename_columns({name: name.removeprefix("json.") for name in rows.column_names if "json." in name})
        text = find_columns(pattern, rows.column_names, Columns(image, None, None, tuple(fields))).target
    form = TableForm(None, None, image, text, form.id_column or "__key__", form.cache_dir)
    return load_dataset_rows(rows, pattern, fields=fields, form=form, kind="webdataset", **options)
