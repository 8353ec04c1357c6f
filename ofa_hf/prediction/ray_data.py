"""Captions on Ray Data: a folder, parquet files or a `datasets` data set, over all GPUs or cores of a cluster.

Ray hands the images out and starts a worker again that died; captions come back to one process, which writes each
image's line once. That file is the record of what is done: a run that was killed is continued by starting it again.
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
from ofa_hf.image_processing_ofa import ImageError
from ofa_hf.pipeline_ofa import fetch_image
from ofa_hf.prediction.captioning import (
    beam_settings,
    caption_files,
    check_beams,
    check_model,
    find_images,
    load_captioner,
)
from ofa_hf.prediction.outputs import CaptionFile
from ofa_hf.prediction.processes import Processes, open_caption_file


ID_COLUMNS = ("image_id", "id", "file", "file_name")  # the first of these that is there names a row
BATCHES_A_CALL = 16  # a call begins with an idle model, and is repeated as a whole when its worker dies
LINES_A_GROUP = 10_000  # of a parquet file
CAPTION = [("caption", pa.string()), ("score", pa.float64())]
OUTPUT_SCHEMA = pa.schema([("file", pa.string()), *CAPTION, ("captions", pa.list_(pa.struct(CAPTION)))])
RESULT_SCHEMA = pa.schema([(name, pa.string()) for name in ("name", "captions", "error")])


class Counts(NamedTuple):
    """How many images were captioned, could not be read, and had been captioned before."""

    captioned: int
    failed: int
    before: int


def caption_with_ray(
    inputs: str | os.PathLike | Sequence[str | os.PathLike] | datasets.Dataset,
    model: str,
    output: str | os.PathLike,
    *,
    workers: int | None = None,
    batch_size: int = 8,
    num_captions: int = 1,
    num_beams: int | None = None,
    dtype: str = "auto",
    image_column: str = "image",
    id_column: str | None = None,
    on_failure: Callable[[str, str], None] = lambda name, reason: None,
    progress: bool = False,
    **options,
) -> Counts:
    """Caption images with workers that hold the model, one a GPU or, without GPUs, one a core.

    Runs in the Ray cluster that this process is connected to or `RAY_ADDRESS` names, else on this machine alone. The
    machines of a cluster need folders that all of them see.

    Args:
        inputs: image files and folders; or parquet files and folders of them; or a data set, or the folder of one
            that `save_to_disk` wrote.
        model: folder or Hub id.
        output: `.jsonl` or `.csv`, continued if it is there; or `.parquet`, written in the end from a `.jsonl` beside
            it, which is continued. Lines stand in the order in which workers were done.
        workers: how many hold the model.
        batch_size: images that go through a model together.
        image_column: images of parquet files and data sets: bytes, paths, or the stored form of `datasets`.
        id_column: what names a row there, in place of `ID_COLUMNS`.
        on_failure: called with name and reason of each image that cannot be read.
        progress: show a bar on stderr.
        options: of the pipeline, such as `prompt` and `max_length`.

    Raises:
        UserError: Ray is not installed or cannot go on, no such model, no image, or no column of that name.
    """
    check_model(model)
    check_beams(num_captions, num_beams)
    path = Path(output)
    record = path.with_suffix(".jsonl") if path.suffix == ".parquet" else path
    with _ray() as ray, open_caption_file(record, num_captions, None, Processes({}), ()) as captions:
        rows, table, columns = _open(ray, inputs, image_column, id_column)
        settings = {"num_captions": num_captions, "num_beams": num_beams, "batch_size": batch_size, **options}
        here, model = os.getcwd(), os.path.abspath(model) if os.path.isdir(model) else model
        known = ray.put((table, captions.done))  # once a machine
        call = batch_size * BATCHES_A_CALL
        results = rows.repartition(target_num_rows_per_block=call).map_batches(
            CaptionWorker,
            fn_constructor_args=(model, dtype, columns, known, here, settings),
            batch_size=call,
            **_share_of_cluster(ray, workers),
        )
        batches = results.iter_batches(batch_size=None, batch_format="pyarrow")
        with tqdm(total=rows.count(), unit="image", disable=not progress) as bar:
            counts = _write(batches, captions, on_failure, bar)
    if record != path:
        write_parquet(record, path)
    return counts


class CaptionWorker:
    """What Ray starts for each GPU or core: a model that captions batches of rows."""

    def __init__(self, model: str, dtype: str, columns: tuple[str, str], known, here: str, settings: dict[str, Any]):
        import ray

        self.name, self.image = columns
        self.table, self.done = ray.get(known)
        self.here = here  # where the starting process looks for files; a worker may run elsewhere
        self.captioner = load_captioner(model, dtype=dtype)
        beams = beam_settings(self.captioner, settings["num_captions"], settings["num_beams"])
        options = {key: value for key, value in settings.items() if key not in ("num_captions", "num_beams")}
        self.options = {**options, **beams, "return_scores": True}

    def __call__(self, batch: dict) -> pa.Table:
        """Rows of names and images, or of their numbers → names (as JSON) with captions, an error, or neither."""
        if self.table is not None:
            batch = self.table[batch["id"].tolist()]
        rows = list(zip(map(str, batch[self.name]), batch[self.image], strict=True))
        todo = [row for row in rows if os.path.normpath(os.path.join(self.here, row[0])) not in self.done]
        errors = {}

        def fail(row: tuple[str, Any], error: ImageError) -> None:
            errors[row[0]] = str(error)

        found = caption_files(self.captioner, todo, on_failure=fail, load=self._load, **self.options)
        captions = {row[0]: json.dumps(rows) for row, rows in found}
        names = [row[0] for row in rows]
        columns = [list(map(json.dumps, names)), list(map(captions.get, names)), list(map(errors.get, names))]
        return pa.table(columns, schema=RESULT_SCHEMA)

    def _load(self, row: tuple[str, Any]):
        image = row[1]
        if isinstance(image, str) and os.path.exists(os.path.join(self.here, image)):
            image = Path(self.here, image)
        return fetch_image(image)


class FileTable:
    """Image files as rows that can be asked for by their numbers, as those of a data set."""

    def __init__(self, files: list[str]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[str]]:
        files = [self.files[number] for number in numbers]
        return {"file": files, "image": files}


@contextmanager
def _ray() -> Iterator:
    """Ray, quiet, connected to its cluster or started here; its failures as one line."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of every actor that may be started again
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("Captioning on Ray needs the package ray. Install it: `pip install 'ofa-hf[ray]'`.") from error
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
            f"Ray could not go on: {reason} What was captioned is in the output; the same command goes on from there."
        ) from error
    finally:
        if started:
            ray.shutdown()


def _open(ray, inputs, image_column: str, id_column: str | None) -> tuple[Any, Any, tuple[str, str]]:
    """Rows for Ray to hand out, the table that they number (None: they bring all along), and (name, image) columns."""
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
            f"The data has the columns {', '.join(there)}, but needs one of images ({image_column}) and one that "
            f"names each row ({id_column or ', '.join(ID_COLUMNS)}). Name them with --image-column and --id-column."
        )
    return found[0], image_column


def _share_of_cluster(ray, workers: int | None) -> dict[str, Any]:
    """How many workers and what each of them takes."""
    there = ray.cluster_resources()
    has_gpus = there.get("GPU", 0) >= 1
    share = {"concurrency": workers or max(1, int(there["GPU" if has_gpus else "CPU"]))}
    return {**share, "num_gpus": int(has_gpus), "num_cpus": 0.5}  # leaves room for the tasks that read parquet


def _write(
    batches: Iterable[pa.Table], output: CaptionFile, on_failure: Callable[[str, str], None], bar: tqdm
) -> Counts:
    """Write what workers send, each image once."""
    captioned, failed, seen = 0, 0, set(output.done)
    for batch in batches:
        for row in batch.to_pylist():
            name = json.loads(row["name"])
            if row["error"]:
                failed += 1
                on_failure(name, row["error"])
            elif row["captions"] and os.path.abspath(name) not in seen:
                captioned += 1
                seen.add(os.path.abspath(name))
                output.write(name, json.loads(row["captions"]))
        bar.update(len(batch))
    return Counts(captioned, failed, len(output.done))


def write_parquet(record: Path, path: Path) -> None:
    """Write a JSONL file of captions as parquet: `file`, `caption`, `score`, and all `captions` of each image."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with record.open(encoding="utf-8") as lines, pq.ParquetWriter(unfinished, OUTPUT_SCHEMA) as writer:
        while rows := [json.loads(line) for line in islice(lines, LINES_A_GROUP)]:
            for row in rows:
                row.setdefault("captions", [{"caption": row["caption"], "score": row["score"]}])
            writer.write_table(pa.Table.from_pylist(rows, schema=OUTPUT_SCHEMA))
    unfinished.replace(path)
