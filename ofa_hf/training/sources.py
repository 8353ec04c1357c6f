"""The data of a run: rows to train on and rows to evaluate on, from files or from a data set."""

from dataclasses import dataclass
from pathlib import Path

import datasets

from ofa_hf import OFAProcessor
from ofa_hf.data import stream_rows
from ofa_hf.data.answers import TargetForm
from ofa_hf.data.sources import Files, TableForm, load_dataset_rows, load_task_files
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import FinetuneArguments


OFFICIAL = "official"  # data_format

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
    """Rows of the files named `train` or `test`."""
    files = Files(
        getattr(args, f"{name}_caption_file"),
        getattr(args, f"{name}_image_file"),
        form_of(args),
        args.data_format == OFFICIAL,
        args.selected_cols,
        is_test=name == "test",
        images_option=f"{name}_image_file",
    )
    options = {"num_proc": args.num_proc, "strict": args.strict}
    return load_task_files(files, task, processor.language, targets_of(args, task), **options)


def form_of(args: FinetuneArguments) -> TableForm:
    """What the arguments say about tables."""
    return TableForm(
        args.encoding, args.separator, args.image_column, args.target_column, args.id_column, args.cache_dir
    )


def targets_of(args: FinetuneArguments, task: Task) -> TargetForm:
    """What the arguments and the task say about targets."""
    if args.columns:
        return TargetForm(cells=tuple(args.columns))
    return TargetForm.of(task, args.more_fields or (), args.confidence_column)


def load_split(args: FinetuneArguments, task: Task, split: str) -> datasets.Dataset:
    """One split of `dataset_name`, stored as rows of the task."""
    name = args.dataset_name
    refuse_text_tables(name)
    rows = datasets.load_from_disk(name) if is_saved_to_disk(name) else datasets.load_dataset(name)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{name} has no split {split}; it has {', '.join(rows)}. Pass one of them.")
        rows = rows[split]
    options = {"fields": task.fields, "form": form_of(args), "has_images": task.needs_image}
    options |= {"targets": targets_of(args, task), "num_proc": args.num_proc, "strict": args.strict}
    return load_dataset_rows(rows, name, **options)


def stream_split(args: FinetuneArguments, task: Task) -> datasets.IterableDataset:
    """The training split of `dataset_name` as rows of the task that are read while training."""
    refuse_text_tables(args.dataset_name)
    if is_saved_to_disk(args.dataset_name):
        rows = datasets.load_from_disk(args.dataset_name)
        rows = rows[args.dataset_split] if isinstance(rows, datasets.DatasetDict) else rows
        rows = rows.to_iterable_dataset()
    else:
        rows = datasets.load_dataset(args.dataset_name, split=args.dataset_split, streaming=True)
    columns = {"image_column": (args.image_column or "image") if task.needs_image else None}
    columns |= {"target_column": args.target_column or task.target_column, "id_column": args.id_column}
    return stream_rows(rows, **columns, fields=task.fields, strict=args.strict, targets=targets_of(args, task))


def refuse_text_tables(name: str) -> None:
    """Raises `UserError` if a local data set is CSV, whose loader takes NA for nothing and 00123 for 123."""
    path = Path(name)
    tables = [path] if path.is_file() else sorted(path.glob("*.[ct]sv")) if path.is_dir() else []
    if tables and not is_saved_to_disk(name):
        raise UserError(
            f"dataset_name is {name}, which is CSV: the datasets library would turn texts such as NA and 00123 into "
            f"other values. Pass train_caption_file {tables[0]}, and the folder of the images as train_image_file."
        )


def is_saved_to_disk(name: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json"))
