"""Predictions on Ray Data: files, tables, parquet files or a `datasets` data set, on all GPUs or cores of a cluster.

Ray distributes the rows and restarts workers that die. One process collects the answers and writes each row once. To
resume a killed run from that file, start it again.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ofa_hf.boxes_ofa import SIDES
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import URL_PREFIXES
from ofa_hf.models import load_model
from ofa_hf.prediction.files import Request, the_task
from ofa_hf.prediction.inputs import ImageFile
from ofa_hf.prediction.loop import check_beams, predict
from ofa_hf.prediction.outputs import AnswerFile, Format, Name
from ofa_hf.prediction.processes import Processes, open_answer_file
from ofa_hf.prediction.questions import Inputs, Rows, find_rows
from ofa_hf.tables.columns import image_column_of
from ofa_hf.tasks_ofa import Task


ID_COLUMNS = ("image_id", "id", "file", "file_name")  # common columns of row ids, in order of preference
BATCHES_PER_CALL = 16  # a call starts with an idle model, and is repeated completely if its worker dies
LINES_PER_GROUP = 10_000  # rows per group of a parquet file
RESULT_SCHEMA = pa.schema([(name, pa.string()) for name in ("name", "answers", "error")])


class Counts(NamedTuple):
    """Number of images answered now, not readable, and answered by an earlier run."""

    answered: int
    failed: int
    before: int


def predict_with_ray(
    inputs: str | os.PathLike | Sequence[str | os.PathLike] | datasets.Dataset,
    model: str,
    output: str | os.PathLike,
    *,
    answer: str = "caption",
    task: str | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    num_answers: int = 1,
    as_probabilities: bool = False,
    batch_size: int = 8,
    workers: int | None = None,
    dtype: str = "auto",
    image_column: str = "image",
    id_column: str | None = None,
    on_failure: Callable[[str, str], None] = lambda name, reason: None,
    progress: bool = False,
    **options,
) -> Counts:
    """Answer images or texts with Ray workers that each have the model, one per GPU or, without GPUs, per core.

    Runs in the Ray cluster of this process or of `RAY_ADDRESS`, otherwise only on this machine. The machines of a
    cluster need shared folders.

    Args:
        inputs: paths as in `Inputs`; or parquet files and folders of them; or a data set, or a folder written by its
            `save_to_disk`.
        model: folder or Hub id.
        output: `.jsonl` or `.csv`, resumed if it exists; or `.parquet`, written at the end from a `.jsonl` next to it,
            which is resumed. Lines are in the order in which workers finish.
        answer: name of an answer in the output; boxes are always called "box".
        task: a task of the checkpoint; by default its default task.
        texts: field of the task → texts to ask about every image; other fields are columns.
        num_answers: answers per row.
        as_probabilities: scores are probabilities; otherwise log-probabilities.
        batch_size: images per batch.
        workers: number of processes with a model.
        image_column: images of parquet files and data sets: bytes, paths, or the stored form of `datasets`.
        id_column: column of row ids there, instead of `ID_COLUMNS`.
        on_failure: called with name and reason of each row that cannot be answered.
        progress: show a bar on stderr.
        options: keywords of `predict`, such as `prompt` and `max_length`; None is the model's default.

    Raises:
        UserError: Ray is not installed or fails, no such model, nothing to answer, or no column of that name.
    """
    if not isinstance(inputs, datasets.Dataset):
        inputs = [os.fspath(each) for each in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    asked = Inputs(() if isinstance(inputs, datasets.Dataset) else inputs, texts or {}, None, image_column)
    choices = options.pop("choices", None) or ()
    options |= {"batch_size": batch_size}
    request = Request(
        "caption", answer, asked, [model], task, choices, num_answers=num_answers, as_probabilities=as_probabilities,
        dtype=dtype, options=options,
    )  # fmt: skip
    return run_with_ray(request, output, inputs, workers, id_column, on_failure, progress)


def run_with_ray(
    request: Request,
    output: str | os.PathLike,
    inputs: Sequence[str] | datasets.Dataset,
    workers: int | None = None,
    id_column: str | None = None,
    on_failure: Callable[[str, str], None] = lambda name, reason: None,
    progress: bool = False,
) -> Counts:
    """Answer a request for one model; see `predict_with_ray`."""
    (model,) = request.models
    if not request.choices:
        check_beams(request.num_answers, request.options.get("num_beams"))
    task, language = the_task("--engine ray", [model], request.task)
    path = Path(output)
    record = path.with_suffix(".jsonl") if path.suffix == ".parquet" else path
    format = request.format(task, ("file",) * task.needs_image + task.fields)
    with _ray() as ray, open_answer_file(record, format, Processes({}), ()) as answers:
        rows, source = _open(ray, inputs, request.inputs, task, language, id_column)
        for problem in source.problems:
            on_failure("", problem)
        for note in source.notes:
            request.say(note)
        here, model = os.getcwd(), os.path.abspath(model) if os.path.isdir(model) else model
        settings = WorkerSettings(model, replace(request, inputs=Inputs(())), task.name, format, here)
        known = ray.put((source, answers.done))  # once per machine
        call = request.options.get("batch_size", 8) * BATCHES_PER_CALL
        results = rows.repartition(target_num_rows_per_block=call).map_batches(
            Worker,
            fn_constructor_args=(settings, known),
            batch_size=call,
            **_share_of_cluster(ray, workers),
        )
        batches = results.iter_batches(batch_size=None, batch_format="pyarrow")
        with tqdm(total=rows.count(), unit="row", disable=not progress) as bar:
            counts = _write(batches, answers, on_failure, bar)
    if record != path:
        write_parquet(record, path, format)
    return counts._replace(failed=counts.failed + len(source.problems))


class WorkerSettings(NamedTuple):
    """The settings of a worker.

    Args:
        here: working directory of the starting process; a worker can run elsewhere.
    """

    model: str
    request: Request
    task: str
    format: Format
    here: str


class Worker:
    """A Ray worker for each GPU or core: a model that answers batches of rows."""

    def __init__(self, settings: WorkerSettings, known):
        import ray

        self.settings, self.request = settings, settings.request
        self.source, self.done = ray.get(known)
        self.loaded = load_model(settings.model, dtype=self.request.dtype)
        options = {name: value for name, value in self.request.options.items() if value is not None}
        options |= {"task": settings.task, "num_answers": self.request.num_answers, "return_scores": True}
        self.options = options | ({"choices": self.request.choices} if self.request.choices else {})

    def __call__(self, batch: dict) -> pa.Table:
        """Rows, or their numbers → names (as JSON) with answers, an error, or neither."""
        asked = list(self.source.rows(batch))
        todo = [row for row in asked if self._key(row["id"]) not in self.done]
        errors: dict[Name, str] = {}

        def fail(name: Name, error: ValueError) -> None:
            errors[name] = str(error)

        found = predict(*self.loaded, map(self._here, todo), on_failure=fail, **self.options)
        answers = {each.id: json.dumps(self.request.written(each)) for each in found if each.answers}
        names = [row["id"] for row in asked]
        columns = [list(map(json.dumps, names)), list(map(answers.get, names)), list(map(errors.get, names))]
        return pa.table(columns, schema=RESULT_SCHEMA)

    def _key(self, name: Name) -> Name:
        parts = zip(self.settings.format.names, self.settings.format.parts(name), strict=True)
        parts = tuple(self._path(part) if title == "file" else part for title, part in parts)
        return self.settings.format.key(parts[0] if len(parts) == 1 else parts)

    def _path(self, file: str) -> str:
        return file if file.startswith(URL_PREFIXES) else os.path.join(self.settings.here, file)

    def _here(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the path of its image, if it has one, resolved for this process."""
        image = row.get("image")
        if isinstance(image, ImageFile) or (isinstance(image, str) and os.path.exists(self._path(image))):
            row["image"] = ImageFile(self._path(os.fspath(image)))
        return row


class NamedRows(NamedTuple):
    """Rows that are looked up by number: those of files, tables and texts."""

    found: Rows

    @property
    def problems(self) -> list[str]:
        return self.found.problems

    @property
    def notes(self) -> list[str]:
        return self.found.notes

    def rows(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return (self.found.row(self.found.names[number]) for number in batch["id"].tolist())


class StoredRows(NamedTuple):
    """Rows of parquet files, which are complete, or of a data set, which are looked up by number.

    Args:
        columns: part of a row → its column; `id` names the row.
        texts: texts of fields that are not columns.
        table: the data set.
    """

    columns: Mapping[str, str]
    fields: tuple[str, ...]
    texts: Mapping[str, Sequence[str]]
    table: Any = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self.table is not None:
            batch = self.table[batch["id"].tolist()]
        columns = [batch[column] for column in self.columns.values()]
        for values in zip(*columns, strict=True):
            row = dict(zip(self.columns, values, strict=True))
            name = str(row.pop("id"))
            for texts in product(*([str(row[field])] if field in row else self.texts[field] for field in self.fields)):
                id_ = (name, *texts) if "image" in row else texts
                yield {**row, **dict(zip(self.fields, texts)), "id": id_[0] if len(id_) == 1 else id_}


@contextmanager
def _ray() -> Iterator:
    """Connect to a Ray cluster or start Ray, without its logs; failures become one line."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns about every restarted actor
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--engine ray needs the package ray. Install it: `pip install 'ofa-hf[ray]'`.") from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    except ray.exceptions.RayError as error:
        # the error of a worker, if it is one
        reason = str(error).strip().splitlines()[-1].rpartition("UserError: ")[-1]
        raise UserError(
            f"Ray failed: {reason} Finished rows are in the output; run the same command again to resume."
        ) from error
    finally:
        if started:
            ray.shutdown()


def _open(
    ray, inputs: Sequence[str] | datasets.Dataset, asked: Inputs, task: Task, language: str, id_column: str | None
) -> tuple[Any, "NamedRows | StoredRows"]:
    """Rows for Ray, and the object that completes them."""
    if not isinstance(inputs, datasets.Dataset):
        if len(inputs) == 1 and os.path.exists(os.path.join(inputs[0], "state.json")):  # by `save_to_disk`
            inputs = datasets.load_from_disk(inputs[0])
        elif inputs and all(map(_is_parquet, inputs)):
            rows = ray.data.read_parquet(list(inputs))
            columns = _columns(rows.columns(), task, asked, id_column)
            return rows.select_columns(list(columns.values())), StoredRows(columns, task.fields, asked.texts)
        else:
            found = find_rows(replace(asked, paths=inputs), task, language)
            return ray.data.range(len(found.names)), NamedRows(found)
    columns = _columns(inputs.column_names, task, asked, id_column)
    table = inputs.select_columns(list(columns.values()))
    if task.needs_image and isinstance(table.features[columns["image"]], datasets.Image):
        table = table.cast_column(columns["image"], datasets.Image(decode=False))
    return ray.data.range(len(table)), StoredRows(columns, task.fields, asked.texts, table)


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet") or (os.path.isdir(path) and any(Path(path).glob("*.parquet")))


def _columns(there: Sequence[str], task: Task, asked: Inputs, id_column: str | None) -> dict[str, str]:
    """The columns of parts of a row: id, image and the fields of the task."""
    image = image_column_of(there, asked.image_column) or asked.image_column or "image"
    fields = [name for name in task.fields if name not in asked.texts]
    found = [name for name in ([id_column] if id_column else ID_COLUMNS) if name in there]
    if not task.needs_image:
        found = fields[:1]
    needed = [image] * task.needs_image + fields
    if not found or (missing := [name for name in needed if name not in there]):
        missing = [name for name in needed if name not in there] or [id_column or ", ".join(ID_COLUMNS)]
        raise UserError(
            f"The data has the columns {', '.join(there)}, but not {', '.join(missing)}: it needs a column of images "
            f"({image}), one that names each row ({id_column or ', '.join(ID_COLUMNS)}), and the columns of the task "
            f"({', '.join(fields) or 'none'}). Name them with --image_column and --id_column."
        )
    return {"id": found[0], **({"image": image} if task.needs_image else {}), **{name: name for name in fields}}


def _share_of_cluster(ray, workers: int | None) -> dict[str, Any]:
    """Number of workers, and the resources of each."""
    there = ray.cluster_resources()
    has_gpus = there.get("GPU", 0) >= 1
    share = {"concurrency": workers or max(1, int(there["GPU" if has_gpus else "CPU"]))}
    return {**share, "num_gpus": int(has_gpus), "num_cpus": 0.5}  # leaves capacity for the tasks that read parquet


def _write(
    batches: Iterable[pa.Table], output: AnswerFile, on_failure: Callable[[str, str], None], bar: tqdm
) -> Counts:
    """Write the results of workers, each row once."""
    answered, failed, seen = 0, 0, set(output.done)
    for batch in batches:
        for row in batch.to_pylist():
            name = json.loads(row["name"])
            name = tuple(name) if isinstance(name, list) else name
            if row["error"]:
                failed += 1
                on_failure(name if isinstance(name, str) else ", ".join(name), row["error"])
            elif row["answers"] and (key := output.format.key(name)) not in seen:
                answered += 1
                seen.add(key)
                output.write(name, json.loads(row["answers"]))
        bar.update(len(batch))
    return Counts(answered, failed, len(output.done))


def write_parquet(record: Path, path: Path, format: Format) -> None:
    """Write a JSONL file of answers as parquet: `file`, `caption`, `score`, and all `captions` of each row.

    Args:
        format: format of the record.
    """
    value = pa.struct([(side, pa.float64()) for side in SIDES]) if format.has_boxes else pa.string()
    fields = [(format.answer, value), ("score", pa.float64())]
    sizes = [("width", pa.int64()), ("height", pa.int64())] if format.has_boxes else []
    names = [(name, pa.string()) for name in format.names]
    schema = pa.schema([*names, *sizes, *fields, (format.plural, pa.list_(pa.struct(fields)))])
    unfinished = path.with_name(f"{path.name}.unfinished")
    with record.open(encoding="utf-8") as lines, pq.ParquetWriter(unfinished, schema) as writer:
        while rows := [json.loads(line) for line in islice(lines, LINES_PER_GROUP)]:
            for row in rows:
                row.setdefault(format.plural, [{name: row[name] for name in (format.answer, "score")}])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    unfinished.replace(path)
