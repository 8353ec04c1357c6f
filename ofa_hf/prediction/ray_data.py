"""Predictions on Ray Data: a folder, parquet files or a `datasets` data set, on all GPUs or cores of a cluster.

Ray distributes the images and restarts workers that die. Answers come back to one process, which writes each image's
line once. That file records what is done: to resume a run that was killed, start it again.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError
from ofa_hf.models import check_model, load_model
from ofa_hf.prediction.inputs import ImageFile, find_images
from ofa_hf.prediction.loop import check_beams, predict
from ofa_hf.prediction.outputs import AnswerFile, Format
from ofa_hf.prediction.processes import Processes, open_answer_file


ID_COLUMNS = ("image_id", "id", "file", "file_name")  # the first of these that exists names a row
BATCHES_PER_CALL = 16  # a call begins with an idle model, and is repeated as a whole when its worker dies
LINES_PER_GROUP = 10_000  # of a parquet file
RESULT_SCHEMA = pa.schema([(name, pa.string()) for name in ("name", "answers", "error")])


class Counts(NamedTuple):
    """How many images were answered now, could not be read, and had been answered by an earlier run."""

    answered: int
    failed: int
    before: int


def predict_with_ray(
    inputs: str | os.PathLike | Sequence[str | os.PathLike] | datasets.Dataset,
    model: str,
    output: str | os.PathLike,
    *,
    answer: str = "caption",
    num_answers: int = 1,
    batch_size: int = 8,
    workers: int | None = None,
    dtype: str = "auto",
    image_column: str = "image",
    id_column: str | None = None,
    on_failure: Callable[[str, str], None] = lambda name, reason: None,
    progress: bool = False,
    **options,
) -> Counts:
    """Answer images with workers that each hold the model, one per GPU or, without GPUs, one per core.

    Runs in the Ray cluster that this process is connected to or that `RAY_ADDRESS` names, else only on this machine.
    The machines of a cluster need folders that all of them see.

    Args:
        inputs: image files and folders; or parquet files and folders of them; or a data set, or the folder that its
            `save_to_disk` wrote.
        model: folder or Hub id.
        output: `.jsonl` or `.csv`, resumed if it exists; or `.parquet`, written at the end from a `.jsonl` next to it,
            which is resumed. Lines are in the order in which workers finished.
        answer: what an answer is called in the output.
        num_answers: per image.
        batch_size: images that go through a model together.
        workers: number of processes that hold the model.
        image_column: images of parquet files and data sets: bytes, paths, or the stored form of `datasets`.
        id_column: what names a row there, in place of `ID_COLUMNS`.
        on_failure: called with name and reason of each image that cannot be read.
        progress: show a bar on stderr.
        options: of `predict`, such as `prompt` and `max_length`; those that are None are the model's.

    Raises:
        UserError: Ray is not installed or fails, no such model, no image, or no column of that name.
    """
    check_model(model)
    check_beams(num_answers, options.get("num_beams"))
    path = Path(output)
    record = path.with_suffix(".jsonl") if path.suffix == ".parquet" else path
    format = Format(answer, num_answers)
    with _ray() as ray, open_answer_file(record, format, Processes({}), ()) as answers:
        rows, table, columns = _open(ray, inputs, image_column, id_column)
        settings = {"num_answers": num_answers, "batch_size": batch_size}
        settings |= {name: value for name, value in options.items() if value is not None}
        here, model = os.getcwd(), os.path.abspath(model) if os.path.isdir(model) else model
        known = ray.put((table, answers.done))  # once per machine
        call = batch_size * BATCHES_PER_CALL
        results = rows.repartition(target_num_rows_per_block=call).map_batches(
            Worker,
            fn_constructor_args=(model, dtype, columns, known, here, settings),
            batch_size=call,
            **_share_of_cluster(ray, workers),
        )
        batches = results.iter_batches(batch_size=None, batch_format="pyarrow")
        with tqdm(total=rows.count(), unit="image", disable=not progress) as bar:
            counts = _write(batches, answers, on_failure, bar)
    if record != path:
        write_parquet(record, path, answer)
    return counts


class Worker:
    """What Ray starts for each GPU or core: a model that answers batches of rows."""

    def __init__(self, model: str, dtype: str, columns: tuple[str, str], known, here: str, settings: dict[str, Any]):
        import ray

        self.name, self.image = columns
        self.table, self.done = ray.get(known)
        self.here = here  # where the starting process looks for files; a worker may run elsewhere
        self.loaded = load_model(model, dtype=dtype)
        self.settings = settings

    def __call__(self, batch: dict) -> pa.Table:
        """Rows of names and images, or of their numbers → names (as JSON) with answers, an error, or neither."""
        if self.table is not None:
            batch = self.table[batch["id"].tolist()]
        names = list(map(str, batch[self.name]))
        rows = [
            {"id": name, "image": self._image(image)}
            for name, image in zip(names, batch[self.image], strict=True)
            if os.path.normpath(os.path.join(self.here, name)) not in self.done
        ]
        errors = {}

        def fail(name: str, error: ImageError) -> None:
            errors[name] = str(error)

        predictions = predict(*self.loaded, rows, on_failure=fail, return_scores=True, **self.settings)
        answers = {each.id: json.dumps(each.answers) for each in predictions if each.answers}
        columns = [list(map(json.dumps, names)), list(map(answers.get, names)), list(map(errors.get, names))]
        return pa.table(columns, schema=RESULT_SCHEMA)

    def _image(self, image: Any) -> Any:
        if isinstance(image, str) and os.path.exists(os.path.join(self.here, image)):
            return ImageFile(os.path.join(self.here, image))
        return image


class FileTable:
    """Image files as rows that are indexed by number, as those of a data set."""

    def __init__(self, files: list[str]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[str]]:
        files = [self.files[number] for number in numbers]
        return {"file": files, "image": files}


@contextmanager
def _ray() -> Iterator:
    """Ray, without its logs, connected to its cluster or started here; its failures as one line."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of every restarted actor
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
        reason = str(error).strip().splitlines()[-1].rpartition("UserError: ")[-1]  # a worker's, if it is one
        raise UserError(
            f"Ray failed: {reason} What was finished is in the output; run the same command again to resume."
        ) from error
    finally:
        if started:
            ray.shutdown()


def _open(ray, inputs, image_column: str, id_column: str | None) -> tuple[Any, Any, tuple[str, str]]:
    """Rows for Ray, the table that they index (None: the rows are complete), and the columns of names and images."""
    if not isinstance(inputs, datasets.Dataset):
        inputs = [os.fspath(each) for each in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
        if len(inputs) == 1 and os.path.exists(os.path.join(inputs[0], "state.json")):  # by `save_to_disk`
            inputs = datasets.load_from_disk(inputs[0])
        elif all(map(_is_parquet, inputs)):
            rows = ray.data.read_parquet(inputs)
            columns = _columns(rows.columns(), image_column, id_column)
            return rows.select_columns(list(columns)), None, columns
        else:
            table = FileTable(find_images(inputs))
            return ray.data.range(len(table)), table, ("file", "image")
    columns = _columns(inputs.column_names, image_column, id_column)
    table = inputs.select_columns(list(columns))
    if isinstance(table.features[image_column], datasets.Image):
        table = table.cast_column(image_column, datasets.Image(decode=False))
    return ray.data.range(len(table)), table, columns


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet") or (os.path.isdir(path) and any(Path(path).glob("*.parquet")))


def _columns(there: Sequence[str], image_column: str, id_column: str | None) -> tuple[str, str]:
    found = [name for name in ([id_column] if id_column else ID_COLUMNS) if name in there]
    if image_column not in there or not found:
        raise UserError(
            f"The data has the columns {', '.join(there)}, but needs a column of images ({image_column}) and one that "
            f"names each row ({id_column or ', '.join(ID_COLUMNS)}). Name them with --image-column and --id-column."
        )
    return found[0], image_column


def _share_of_cluster(ray, workers: int | None) -> dict[str, Any]:
    """How many workers, and the resources of each."""
    there = ray.cluster_resources()
    has_gpus = there.get("GPU", 0) >= 1
    share = {"concurrency": workers or max(1, int(there["GPU" if has_gpus else "CPU"]))}
    return {**share, "num_gpus": int(has_gpus), "num_cpus": 0.5}  # leaves room for the tasks that read parquet


def _write(
    batches: Iterable[pa.Table], output: AnswerFile, on_failure: Callable[[str, str], None], bar: tqdm
) -> Counts:
    """Write what workers send, each image once."""
    answered, failed, seen = 0, 0, set(output.done)
    for batch in batches:
        for row in batch.to_pylist():
            name = json.loads(row["name"])
            if row["error"]:
                failed += 1
                on_failure(name, row["error"])
            elif row["answers"] and os.path.abspath(name) not in seen:
                answered += 1
                seen.add(os.path.abspath(name))
                output.write(name, json.loads(row["answers"]))
        bar.update(len(batch))
    return Counts(answered, failed, len(output.done))


def write_parquet(record: Path, path: Path, answer: str = "caption") -> None:
    """Write a JSONL file of captions as parquet: `file`, `caption`, `score`, and all `captions` of each image.

    Args:
        answer: what an answer is called.
    """
    fields = [(answer, pa.string()), ("score", pa.float64())]
    schema = pa.schema([("file", pa.string()), *fields, (f"{answer}s", pa.list_(pa.struct(fields)))])
    unfinished = path.with_name(f"{path.name}.unfinished")
    with record.open(encoding="utf-8") as lines, pq.ParquetWriter(unfinished, schema) as writer:
        while rows := [json.loads(line) for line in islice(lines, LINES_PER_GROUP)]:
            for row in rows:
                row.setdefault(f"{answer}s", [{answer: row[answer], "score": row["score"]}])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    unfinished.replace(path)
