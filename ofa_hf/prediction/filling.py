"""Fill the columns of a table of images: each column is a question, and the image is read once for all of them."""

import csv
import io
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.models import load_model, read_tasks
from ofa_hf.prediction.inputs import TableImages, image_of
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.outputs import box_text, lock, sides_of, whole_lines
from ofa_hf.prediction.processes import Processes
from ofa_hf.prediction.questions import cell_text
from ofa_hf.tables.column_names import IMAGES, matches
from ofa_hf.tables.problems import Problem
from ofa_hf.tables.table_files import Table, open_table
from ofa_hf.tasks_ofa import TASKS, Task


SCORE = "_score"  # behind a column's name: how probable the model finds its value
MARK = "\ufeff"  # starts a CSV, without which spreadsheets read Chinese as something else


@dataclass(frozen=True)
class Filling:
    """What to fill.

    Args:
        table: with a row per image.
        images: folder that holds them; with a column of URLs or of paths below the table's folder, None.
        output: `.csv` or `.jsonl`, continued if it exists.
        columns: tasks of the model; by default all of its own, which are not in `TASKS`.
        encoding, separator: of the table, where they cannot be told; see `open_table`.
        overwrite: answer cells that have a value, too.
        min_score: values with a lower score are left out.
    """

    table: str
    images: str | None
    model: str
    output: str
    columns: Sequence[str] = ()
    image_column: str | None = None
    overwrite: bool = False
    min_score: float = 0.0
    batch_size: int = 8
    device: str | None = None
    dtype: str = "auto"
    encoding: str | None = None
    separator: str | None = None


def fill_table(
    filling: Filling,
    say: Callable[[str], None] = lambda text: None,
    on_row: Callable[[], object] = lambda: None,
) -> Counter[str]:
    """Write the table with its columns filled and a score for each; other columns stay as they are.

    Args:
        say: called with each problem, in a line.
        on_row: called after each row.

    Returns:
        numbers: `rows`, cells `filled`, `kept` and `below` the lowest score, rows `failed`, rows done `before`.

    Raises:
        UserError: no such table, column, image folder or model, a model without such a task, or an output that holds
            something else.
    """
    if Processes().count > 1:
        raise UserError("fill runs in one process. Start it without torchrun, or split the table.")
    table = open_table(filling.table, encoding=filling.encoding, separator=filling.separator)
    tasks = column_tasks(filling, table)
    image_column, images = find_image_column(table, filling), TableImages(filling.table, filling.images)
    check_fields(table, tasks)
    with FilledTable(filling.output, table, list(tasks)) as output:
        work = _Work(filling, table, tasks, image_column, images, output, say, on_row)
        work.run()
        return work.counts


def column_tasks(filling: Filling, table: Table) -> dict[str, Task]:
    """The columns to fill, each with the task that answers it; by default in the order of the table.

    Raises:
        UserError: the model has no such task, or none of its own.
    """
    tasks, _, _ = read_tasks(filling.model)
    places = {name: number for number, name in enumerate(table.columns)}
    own = sorted((name for name in tasks if name not in TASKS), key=lambda name: places.get(name, len(places)))
    columns = list(dict.fromkeys(filling.columns)) or own
    if not columns:
        raise UserError(
            f"The model {filling.model} was not trained to fill columns: its tasks are {', '.join(tasks)}. Train one "
            f"with the columns of your table, or name some of these with --columns."
        )
    if unknown := [name for name in columns if name not in tasks]:
        raise UserError(
            f"The model {filling.model} cannot fill {', '.join(unknown)}. Accepted with --columns: {', '.join(tasks)}."
        )
    return {name: tasks[name] for name in columns}


def find_image_column(table: Table, filling: Filling) -> str:
    """The column that names images.

    Raises:
        UserError: there is none.
    """
    named = [filling.image_column] if filling.image_column in table.columns else []
    found = named if filling.image_column else matches(table.columns, IMAGES)
    if not found:
        raise UserError(
            f"{filling.table} has no column {filling.image_column or 'image'}; it has {', '.join(table.columns)[:300]}"
            f". Name the column of images with --image-column."
        )
    return found[0]


def check_fields(table: Table, tasks: Mapping[str, Task]) -> None:
    """Raises `UserError` if a column's prompt asks about another column that the table lacks."""
    for name, task in tasks.items():
        if missing := [field for field in task.fields if field not in table.columns]:
            raise UserError(
                f"The question of {name} needs {', '.join(missing)}, which {table.path} lacks; it has "
                f"{', '.join(table.columns)[:300]}. Add that column, or leave {name} out of --columns."
            )


@dataclass
class _Row:
    """A row of the table, and the columns that still wait for their answer."""

    line: int
    values: dict[str, Any]
    waiting: set[str]


@dataclass
class _Work:
    """The rows of a table on their way through the model."""

    filling: Filling
    table: Table
    tasks: Mapping[str, Task]
    image_column: str
    images: TableImages
    output: "FilledTable"
    say: Callable[[str], None]
    on_row: Callable[[], object]
    counts: Counter[str] = field(default_factory=Counter)
    rows: deque[_Row] = field(default_factory=deque)
    failed: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Fill what an earlier run has not; the model is loaded only if there is anything."""
        self.counts["before"] = self.output.num_rows
        left = self._rows_left()
        if (first := next(left, None)) is None:
            return
        filling = self.filling
        model, processor = load_model(filling.model, device=filling.device, dtype=filling.dtype)
        options = {"task": next(iter(self.tasks)), "batch_size": filling.batch_size, "return_scores": True}
        by_line: dict[int, _Row] = {}
        questions = self._questions(chain([first], left), by_line)
        for prediction in predict(model, processor, questions, on_failure=self._fail, **options):
            line, column = prediction.id
            row = by_line[line]
            if prediction.answers:
                self._take(row, column, prediction.answers[0])
            row.waiting.discard(column)
            self._write_finished(by_line)
        self._write_finished(by_line)

    def _questions(
        self, left: Iterable[tuple[int, Mapping[str, Any]]], by_line: dict[int, _Row]
    ) -> Iterator[dict[str, Any]]:
        """A row of `predict` per cell to fill; table rows enter `rows` on the way."""
        for line, row in left:
            wanted = [name for name in self.tasks if self.filling.overwrite or not cell_text(row.get(name))]
            self.counts["kept"] += len(self.tasks) - len(wanted)
            file = cell_text(row.get(self.image_column))
            if wanted and not file:
                self._fail((line, ""), ValueError(f"the column {self.image_column} is empty"))
                wanted = []
            by_line[line] = _Row(line, dict(row), set(wanted))
            self.rows.append(by_line[line])
            self._write_finished(by_line)  # rows without anything to fill must not pile up
            image = image_of(self.images.file(file)) if file else None
            for name in wanted:
                fields = {field: cell_text(row.get(field)) for field in self.tasks[name].fields}
                yield {**fields, "id": (line, name), "task": name, "image": image}

    def _rows_left(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        done = iter(self.output.rows_done())
        for line, row in self.table:
            if isinstance(row, Problem):
                self.counts["failed"] += 1
                self.say(f"left out: {row}")
            elif (before := next(done, None)) is None:
                yield line, row
            else:
                self.output.check_same(row, before, line)

    def _fail(self, id_: tuple[int, str], error: ValueError) -> None:
        line, _ = id_
        if line not in self.failed:
            self.failed.add(line)
            self.counts["failed"] += 1
            self.say(f"not filled: {self.filling.table}, line {line}: {error}")

    def _take(self, row: _Row, column: str, answer: Mapping[str, Any]) -> None:
        score = math.exp(answer["score"])
        value = box_text(sides_of(answer["box"])) if "box" in answer else answer["text"]
        is_sure = score >= self.filling.min_score
        self.counts["filled" if is_sure else "below"] += 1
        row.values[column], row.values[column + SCORE] = value if is_sure else "", round(score, 6)

    def _write_finished(self, by_line: dict[int, _Row]) -> None:
        while self.rows and not self.rows[0].waiting:
            row = self.rows.popleft()
            del by_line[row.line]
            self.output.write(row.values)
            self.counts["rows"] += 1
            self.on_row()


class FilledTable:
    """The table that is written: `.csv` for spreadsheets, or `.jsonl`. A row that a killed run left half is redone.

    Args:
        columns: that are filled; those that the table lacks come after its own, each followed by its score.

    Raises:
        UserError: another suffix, a file that cannot be written, or one that holds something else.
    """

    def __init__(self, path: str | os.PathLike, table: Table, columns: Sequence[str]):
        self.path, self.table = Path(path), table
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() != ".jsonl":
            raise UserError(f"The output {self.path} has no known suffix. Accepted: .csv and .jsonl. Rename it.")
        if self.path.exists() and table.path.resolve() == self.path.resolve():
            raise UserError(f"The output {self.path} is the table itself, which is never changed. Give another name.")
        added = [name for column in columns for name in (column, column + SCORE) if name not in table.columns]
        self.columns = [*table.columns, *added]
        self.filled = {name for column in columns for name in (column, column + SCORE)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab+")  # closed by __exit__
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}. Give another --output.") from error

        try:
            lock(self._stream, self.path)
            self._keep_whole_rows()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "FilledTable":
        return self

    def __exit__(self, *exception) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _keep_whole_rows(self) -> None:
        """Once the file is known to be ours, remove a torn last row; begin a new file."""
        self._stream.seek(0)
        data = self._stream.read()
        kept = whole_lines(data, self.is_csv)
        header = (MARK + self._line(dict(zip(self.columns, self.columns)))).encode() if self.is_csv else b""
        start = header or b"{"
        if data and not (data.startswith(start) or start.startswith(data)):
            raise self._foreign("its columns are others")
        if len(kept) < len(data):
            self._stream.truncate(len(kept))
        if not kept:
            self._stream.write(header)
        self._stream.flush()
        self.num_rows = sum(1 for _ in self.rows_done())

    def _foreign(self, reason: str) -> UserError:
        return UserError(
            f"The output {self.path} exists and was not made of {self.table.path} with these columns: {reason}. Give "
            f"another name, or move the file away."
        )

    def rows_done(self) -> Iterator[dict[str, Any]]:
        """The rows that the file holds."""
        with self.path.open(encoding="utf-8-sig", newline="") as stream:
            try:
                yield from csv.DictReader(stream) if self.is_csv else map(json.loads, filter(str.strip, stream))
            except (ValueError, csv.Error) as error:
                raise self._foreign(str(error)) from error

    def check_same(self, row: Mapping[str, Any], done: Mapping[str, Any], line: int) -> None:
        """Refuse to continue the table of other rows.

        Raises:
            UserError: a column that is not filled differs.
        """
        for name in self.table.columns:
            if name not in self.filled and cell_text(row.get(name)) != cell_text(done.get(name)):
                raise self._foreign(f"line {line} of the table has another {name}")

    def write(self, row: Mapping[str, Any]) -> None:
        self._stream.write(self._line(row).encode("utf-8", "backslashreplace"))
        self._stream.flush()

    def _line(self, row: Mapping[str, Any]) -> str:
        if not self.is_csv:
            values = {name: row.get(name) for name in self.columns}
            return json.dumps(values, ensure_ascii=False, default=str) + "\n"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_csv_cell(row.get(name)) for name in self.columns])
        return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else value
