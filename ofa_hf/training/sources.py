"""The data of a run: rows to train on and rows to evaluate on, from files or from a data set."""

from pathlib import Path

import datasets

from ofa_hf.data import stream_rows
from ofa_hf.data.sources import TableForm, has_its_images, load_dataset_rows, load_source
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import FinetuneArguments


Rows = datasets.Dataset | datasets.IterableDataset


def load_data(args: FinetuneArguments, task: Task) -> tuple[Rows, datasets.Dataset | None]:
    """Rows to train on, streamed if asked for, and rows to evaluate on.

    Raises:
        UserError: files, columns or splits are missing or do not fit the task.
    """
    if args.dataset_name:
        train_rows = stream_split(args, task) if args.streaming else load_split(args, task, args.dataset_split)
        return train_rows, load_split(args, task, args.eval_split) if args.eval_split else None
    train_rows = load_files(args, task, "train")
    if args.test_caption_file is None:
        return train_rows, None
    test_rows = load_files(args, task, "test")
    if args.merge_test:
        return datasets.concatenate_datasets([train_rows, test_rows]), None
    return train_rows, test_rows


def load_files(args: FinetuneArguments, task: Task, name: str) -> datasets.Dataset:
    """Rows of the files named `train` or `test`, see `load_source`."""
    table, images = getattr(args, f"{name}_caption_file"), getattr(args, f"{name}_image_file")
    if images is None and task.needs_image and not has_its_images(table, form_of(args)):
        raise UserError(
            f"{name}_image_file is missing: the task {task.name} needs images. Pass MUGE's image file, or the folder "
            f"of the images that {table} names."
        )
    options = {"fields": task.fields, "needs_images": task.needs_image, "form": form_of(args)}
    return load_source(table, images, **options, num_proc=args.num_proc, strict=args.strict)


def form_of(args: FinetuneArguments) -> TableForm:
    """What the arguments say about tables."""
    return TableForm(
        args.encoding, args.separator, args.image_column, args.target_column, args.id_column, args.cache_dir
    )


def load_split(args: FinetuneArguments, task: Task, split: str) -> datasets.Dataset:
    """One split of `dataset_name`, stored as rows of the task."""
    name = args.dataset_name
    rows = datasets.load_from_disk(name) if is_saved_to_disk(name) else datasets.load_dataset(name)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{name} has no split {split}; it has {', '.join(rows)}. Pass one of them.")
        rows = rows[split]
    options = {"fields": task.fields, "form": form_of(args), "has_images": task.needs_image}
    return load_dataset_rows(rows, name, **options, num_proc=args.num_proc, strict=args.strict)


def stream_split(args: FinetuneArguments, task: Task) -> datasets.IterableDataset:
    """The training split of `dataset_name` as rows of the task that are read while training."""
    if is_saved_to_disk(args.dataset_name):
        rows = datasets.load_from_disk(args.dataset_name)
        rows = rows[args.dataset_split] if isinstance(rows, datasets.DatasetDict) else rows
        rows = rows.to_iterable_dataset()
    else:
        rows = datasets.load_dataset(args.dataset_name, split=args.dataset_split, streaming=True)
    columns = {"image_column": args.image_column or "image", "target_column": args.target_column or "caption"}
    if not task.needs_image:
        columns["image_column"] = None
    return stream_rows(rows, **columns, id_column=args.id_column, fields=task.fields, strict=args.strict)


def is_saved_to_disk(name: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json"))
