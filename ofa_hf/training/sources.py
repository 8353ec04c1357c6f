"""The data of a run: rows to train on and rows to evaluate on, from files or from a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers import Seq2SeqTrainingArguments

from ofa_hf import OFAProcessor
from ofa_hf.data import stream_rows
from ofa_hf.data.answers import AnswerRule, TargetForm
from ofa_hf.data.codes import ImageEncoder
from ofa_hf.data.sources import Files, TableForm, as_read, has_codes, load_dataset_rows, load_task_files
from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import FinetuneArguments
from ofa_hf.training.image_codes import CodeMaker


OFFICIAL = "official"  # data_format

Rows = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class RunData:
    """The rows of a run.

    Args:
        train, test: rows to train on, and to evaluate on if there are any; a data set per task if several tasks have
            their own files.
    """

    train: Rows | dict[str, datasets.Dataset]
    test: datasets.Dataset | dict[str, datasets.Dataset] | None

    def stored(self) -> list[datasets.Dataset]:
        """All data sets that are stored, those to train on first."""
        sets = [
            one for rows in (self.train, self.test) for one in (rows.values() if isinstance(rows, dict) else [rows])
        ]
        return [rows for rows in sets if isinstance(rows, datasets.Dataset)]


def load_data(
    args: FinetuneArguments, processor: OFAProcessor, trainer_args: Seq2SeqTrainingArguments | None = None
) -> RunData:
    """Rows to train on, streamed if asked for, and rows to evaluate on.

    Args:
        trainer_args: device and processes that turn images to draw into codes.

    Raises:
        UserError: files, columns or splits are missing or do not fit the task; a model that draws has no VQGAN.
    """
    if not args.tasks:
        return RunData(*load_rows_of(args, processor, trainer_args))
    parts = {task: load_rows_of(args.of_task(task), processor, trainer_args) for task in args.tasks}
    test = {task: rows for task, (_, rows) in parts.items() if rows is not None}
    return RunData({task: rows for task, (rows, _) in parts.items()}, test or None)


def load_rows_of(
    args: FinetuneArguments, processor: OFAProcessor, trainer_args: Seq2SeqTrainingArguments | None = None
) -> tuple[Rows, datasets.Dataset | None]:
    """Rows of a run of one task, or of columns of one table."""
    task = processor.find_task(args.task if args.task in processor.tasks else None)
    make = code_maker(args, processor, task, trainer_args)
    if args.dataset_name:
        train_rows = stream_split(args, task) if args.streaming else make(load_split(args, task, args.dataset_split))
        return train_rows, make(load_split(args, task, args.eval_split)) if args.eval_split else None
    train_rows = make(load_files(args, processor, task, "train"))
    if args.test_caption_file is None:
        return train_rows, None
    test_rows = make(load_files(args, processor, task, "test"))
    if args.merge_test:
        return datasets.concatenate_datasets([train_rows, test_rows]), None
    return train_rows, test_rows


def load_files(args: FinetuneArguments, processor: OFAProcessor, task: Task, name: str) -> datasets.Dataset:
    """Rows of the files named `train` or `test`."""
    options = {"num_proc": args.num_proc, "strict": args.strict}
    return load_task_files(
        files_of(args, name), task, processor.language, targets_of(args, task, processor), **options
    )


def files_of(args: FinetuneArguments, name: str) -> Files:
    """The files named `train` or `test`."""
    return Files(
        getattr(args, f"{name}_caption_file"),
        getattr(args, f"{name}_image_file"),
        form_of(args),
        args.data_format == OFFICIAL,
        args.selected_cols,
        is_test=name == "test",
        images_option=f"{name}_image_file",
    )


def code_maker(
    args: FinetuneArguments, processor: OFAProcessor, task: Task, trainer_args: Seq2SeqTrainingArguments | None
) -> Callable[[datasets.Dataset], datasets.Dataset]:
    """Returns a function that turns images into codes; it does not change rows for other tasks or with codes.

    Raises:
        UserError: the run needs a VQGAN that the model does not have, or streams its data.
    """
    if task.answer != "image":
        return lambda rows: rows
    names = [] if args.dataset_name else [name for name in ("train", "test") if getattr(args, f"{name}_caption_file")]
    has_images = [not has_codes(files_of(args, name), task) for name in names] or [True]
    if args.streaming or len(task.fields) != 1:
        raise UserError(
            f"The task {task.name} draws, so its images become codes before the training, and its prompt has one "
            f"slot. It has {len(task.fields)}; streaming is {str(args.streaming).lower()}. Drop streaming."
        )
    if not any(has_images):
        return lambda rows: rows
    device = None if trainer_args is None else trainer_args.device
    encoder = ImageEncoder.load(args.model_name_or_path, None if device is None else str(device))
    encoder.check_codes(processor.codes()[1])
    make = CodeMaker(encoder, task, processor.model_size(task)[0], args.cache_dir)
    if trainer_args is not None:
        make.process, make.processes = trainer_args.process_index, trainer_args.world_size
        make.sample_seed = trainer_args.seed if args.sample_codes else None
    return lambda rows: make(rows) if "image" in rows.column_names else rows


def form_of(args: FinetuneArguments) -> TableForm:
    """The arguments about tables."""
    return TableForm(
        args.encoding, args.separator, args.image_column, args.target_column, args.id_column, args.cache_dir
    )


def targets_of(args: FinetuneArguments, task: Task, processor: OFAProcessor | None = None) -> TargetForm:
    """The targets for these arguments and this task."""
    if task.answer == "image" and processor is not None:
        width, height = processor.model_size(task)
        number = (width // PIXELS_PER_CODE) * (height // PIXELS_PER_CODE)
        return TargetForm(AnswerRule("image", codes=(number, processor.codes()[1])))
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
    task = as_read(task)
    options = {"fields": task.fields, "form": form_of(args), "has_images": task.needs_image}
    options |= {"targets": targets_of(args, task), "num_proc": args.num_proc, "strict": args.strict}
    return load_dataset_rows(rows, name, **options)


def stream_split(args: FinetuneArguments, task: Task) -> datasets.IterableDataset:
    """The training split of `dataset_name`, streamed as rows of the task."""
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
    """Raises `UserError` if a local data set is CSV, whose loader turns NA into None and 00123 into 123."""
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
