"""The data of a run: rows to train on and rows to evaluate on, from files or from a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ofa_hf import OFAProcessor
from ofa_hf.data import load_muge, load_rows, load_table, stream_rows
from ofa_hf.data.answers import AnswerRule
from ofa_hf.data.official import FORMS, load_official
from ofa_hf.data.table_files import open_table
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import FinetuneArguments


OFFICIAL = "official"  # data_format
CONFIDENCE = "confidence"  # usual name of the column, where a task scores by it
TSV = ".tsv"  # with images inside: MUGE's image files, and the original's files

Rows = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class RunData:
    """The rows of a run.

    Args:
        train, test: rows to train on, and to evaluate on if there are any; of several tasks with files of their own
            one data set for each.
    """

    train: Rows | dict[str, datasets.Dataset]
    test: datasets.Dataset | dict[str, datasets.Dataset] | None

    def stored(self) -> list[datasets.Dataset]:
        """All data sets that are stored, those to train on first."""
        sets = [
            one for rows in (self.train, self.test) for one in (rows.values() if isinstance(rows, dict) else [rows])
        ]
        return [rows for rows in sets if isinstance(rows, datasets.Dataset)]


def load_data(args: FinetuneArguments, processor: OFAProcessor) -> RunData:
    """Rows to train on, streamed if asked for, and rows to evaluate on.

    Raises:
        UserError: files, columns or splits are missing or do not fit the task.
    """
    if not args.tasks:
        return RunData(*load_rows_of(args, processor))
    parts = {task: load_rows_of(args.of_task(task), processor) for task in args.tasks}
    test = {task: rows for task, (_, rows) in parts.items() if rows is not None}
    return RunData({task: rows for task, (rows, _) in parts.items()}, test or None)


def load_rows_of(args: FinetuneArguments, processor: OFAProcessor) -> tuple[Rows, datasets.Dataset | None]:
    """Rows of a run of one task, or of columns of one table."""
    task = processor.find_task(args.task if args.task in processor.tasks else None)
    if args.dataset_name:
        train_rows = stream_split(args, task) if args.streaming else load_split(args, task, args.dataset_split)
        return train_rows, load_split(args, task, args.eval_split) if args.eval_split else None
    train_rows = load_files(args, processor, task, "train")
    if args.test_caption_file is None:
        return train_rows, None
    test_rows = load_files(args, processor, task, "test")
    if args.merge_test:
        return datasets.concatenate_datasets([train_rows, test_rows]), None
    return train_rows, test_rows


def load_files(args: FinetuneArguments, processor: OFAProcessor, task: Task, name: str) -> datasets.Dataset:
    """The original's files, MUGE's if the images are a `.tsv`, otherwise a table with its folder of images."""
    table, images = getattr(args, f"{name}_caption_file"), getattr(args, f"{name}_image_file")
    options = {"num_proc": args.num_proc, "strict": args.strict}
    if args.columns:
        if images is None:
            raise missing_images(name, table, "columns of products need images")
        columns = {"image_column": args.image_column, "id_column": args.id_column, "cells": args.columns}
        return load_table(table, images, **columns, **options)
    if is_official(args, task, table, images):
        named = {"is_test": name == "test", "selected_cols": args.selected_cols, "more_fields": args.more_fields or ()}
        return load_official(table, task, processor.language, **named, **options)
    if images is None and task.needs_image:
        raise missing_images(name, table, f"the task {task.name} needs images")
    if images is None or Path(images).suffix != TSV:
        found = open_table(table).columns
        return load_table(table, images, **columns_of(args, task, images is not None, found), **options)
    if task.fields:
        raise UserError(
            f"The task {task.name} needs the columns {', '.join(task.fields)}, which MUGE's files do not have. Pass a "
            "table and a folder of images."
        )
    return load_muge(table, images, **options)


def is_official(args: FinetuneArguments, task: Task, table: str, images: str | None) -> bool:
    """Whether files are the original's: the user says so, or a task with images has nothing but a TSV."""
    if args.data_format == OFFICIAL and images is not None:
        raise UserError(
            f"data_format is official, whose files hold their images, but {images} was given too. Leave the image "
            f"file out, or data_format."
        )
    has_images_inside = images is None and task.needs_image and Path(table).suffix == TSV and task.name in FORMS
    return args.data_format == OFFICIAL or has_images_inside


def missing_images(name: str, table: str, why: str) -> UserError:
    return UserError(
        f"{name}_image_file is missing: {why}. Pass MUGE's image file, or the folder of the images that {table} names."
    )


def columns_of(args: FinetuneArguments, task: Task, has_images: bool, found: Sequence[str]) -> dict[str, Any]:
    """Names of columns as the loaders take them, and what targets must be.

    Args:
        found: the columns that there are.
    """
    usual = task.target_column if task.target_column in found else None
    confidence = args.confidence_column
    if confidence is None and CONFIDENCE in found and task.metric == "vqa":
        confidence = CONFIDENCE
    return {
        "image_column": args.image_column if has_images else None,
        "target_column": args.target_column or usual,
        "id_column": args.id_column,
        "fields": task.fields,
        "more_fields": args.more_fields or (),
        "confidence_column": confidence,
        "rule": AnswerRule.of(task),
    }


def dataset_columns(args: FinetuneArguments, task: Task, found: Sequence[str] | None) -> dict[str, Any]:
    """The same for a data set, whose columns have their usual names unless the user names others."""
    columns = columns_of(args, task, task.needs_image, found or ())
    columns["target_column"] = columns["target_column"] or task.target_column
    columns["image_column"] = (args.image_column or "image") if task.needs_image else None
    return columns


def load_split(args: FinetuneArguments, task: Task, split: str) -> datasets.Dataset:
    """One split of `dataset_name`, stored as rows of the task."""
    name = args.dataset_name
    rows = datasets.load_from_disk(name) if is_saved_to_disk(name) else datasets.load_dataset(name)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{name} has no split {split}; it has {', '.join(rows)}. Pass one of them.")
        rows = rows[split]
    options = {"num_proc": args.num_proc, "strict": args.strict}
    return load_rows(rows, **dataset_columns(args, task, rows.column_names), **options)


def stream_split(args: FinetuneArguments, task: Task) -> datasets.IterableDataset:
    """The training split of `dataset_name` as rows of the task that are read while training."""
    if is_saved_to_disk(args.dataset_name):
        rows = datasets.load_from_disk(args.dataset_name)
        rows = rows[args.dataset_split] if isinstance(rows, datasets.DatasetDict) else rows
        rows = rows.to_iterable_dataset()
    else:
        rows = datasets.load_dataset(args.dataset_name, split=args.dataset_split, streaming=True)
    return stream_rows(rows, **dataset_columns(args, task, rows.column_names), strict=args.strict)


def is_saved_to_disk(name: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json"))
