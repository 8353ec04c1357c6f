"""Fill columns of a table of images: each column is a question, and an image is encoded once for all of them."""

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ofa_hf.data.tables import name_of_image
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError
from ofa_hf.models import LoadedModel, load_model, read_tasks
from ofa_hf.prediction.filled_table import SCORE, FilledTable
from ofa_hf.prediction.inputs import TableImages, image_of
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.outputs import box_text, sides_of
from ofa_hf.prediction.processes import Processes
from ofa_hf.prediction.questions import cell_text, columns_asked
from ofa_hf.tables.columns import image_column_of
from ofa_hf.tables.problems import Problem, describe_form
from ofa_hf.tables.table_files import Table, open_table
from ofa_hf.tasks_ofa import Task


@dataclass(frozen=True)
class Filling:
    """What to fill.

    Args:
        table: with a row per image.
        images: folder that holds them; with a column of URLs or of paths below the table's folder, None.
        output: `.csv` or `.jsonl`. One that exists is continued; cells that could not be filled are asked again.
        columns: tasks of the model; by default all of its own, which are not in `TASKS`.
        encoding, separator: of the table, where they cannot be told; see `open_table`.
        cache_dir: folder of what is unpacked and downloaded.
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
    cache_dir: str | None = None


def fill_table(
    filling: Filling,
    say: Callable[[str], None] = lambda text: None,
    on_row: Callable[[], object] = lambda: None,
) -> Counter[str]:
    """Write the table with its columns filled and a score for each; other columns are unchanged.

    Args:
        say: called with a line for each problem.
        on_row: called after each row.

    Returns:
        counts: `rows`, cells `filled`, `kept` and `below` the minimum score, rows `failed`, rows done `before`.

    Raises:
        UserError: no such table, column, image folder or model, a table without rows, a model without such a task, or
            an output that holds something else.
    """
    if Processes().count > 1:
        raise UserError("fill runs in one process. Start it without torchrun, or split the table.")
    table = open_table(filling.table, encoding=filling.encoding, separator=filling.separator)
    tasks = column_tasks(filling, table)
    image_column, images = (
        find_image_column(table, filling),
        TableImages(filling.table, filling.images, filling.cache_dir),
    )
    check_fields(table, tasks)
    if next(iter(table), None) is None:
        raise UserError(f"Nothing to fill in {filling.table}: it has no rows.")
    with FilledTable(filling.output, table, list(tasks)) as output:
        work = _Work(filling, table, tasks, image_column, images, output, say, on_row)
        say(f"{filling.table} is read as {describe_form({**table.assumed, 'columns': {'image': image_column}})}.")
        work.run()
        for note in images.notes():
            say(note)
        return work.counts


def column_tasks(filling: Filling, table: Table) -> dict[str, Task]:
    """The columns to fill, each with the task that answers it; by default in the order of the table.

    Raises:
        UserError: the model has no such task, or none of its own.
    """
    tasks, _, _ = read_tasks(filling.model)
    columns = columns_asked(filling.model, tasks, filling.columns)
    if not filling.columns:
        places = {name: number for number, name in enumerate(table.columns)}
        columns.sort(key=lambda name: places.get(name, len(places)))
    return {name: tasks[name] for name in columns}


def find_image_column(table: Table, filling: Filling) -> str:
    """The column that names images.

    Raises:
        UserError: there is none.
    """
    found = image_column_of(table.columns, filling.image_column)
    if found is None:
        raise UserError(
            f"{filling.table} has no column {filling.image_column or 'image'}; it has {', '.join(table.columns)[:300]}"
            f". Name the column of images with --image_column."
        )
    return found


def check_fields(table: Table, tasks: Mapping[str, Task]) -> None:
    """Raises `UserError` if the prompt of a column refers to a column that the table does not have."""
    for name, task in tasks.items():
        if missing := [field for field in task.fields if field not in table.columns]:
            raise UserError(
                f"The question of {name} needs {', '.join(missing)}, which {table.path} lacks; it has "
                f"{', '.join(table.columns)[:300]}. Add that column, or leave {name} out of --columns."
            )


@dataclass
class _Row:
    """A row of the table, and the columns that are not answered yet."""

    line: int
    values: dict[str, Any]
    waiting: set[str]
    is_copy: bool  # from an earlier run, with nothing to ask again


@dataclass
class _Work:
    """The rows of a table that are being answered."""

    filling: Filling
    table: Table
    tasks: Mapping[str, Task]
    image_column: str
    images: TableImages
    output: FilledTable
    say: Callable[[str], None]
    on_row: Callable[[], object]
    counts: Counter[str] = field(default_factory=Counter)
    rows: deque[_Row] = field(default_factory=deque)
    failed: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Fill what is missing; the model is loaded only if there is anything to fill."""
        num_failed, has_more = self._look_back()
        self.counts["before"] = self.output.num_rows - num_failed
        loaded = None
        if num_failed or has_more:
            filling = self.filling
            loaded = load_model(filling.model, device=filling.device, dtype=filling.dtype)
        if num_failed:
            self.output.write_again()
        left = self._rows_left(again=num_failed > 0)
        if loaded:
            self._answer(loaded, left)
        else:
            assert next(left, None) is None

    def _answer(self, loaded: LoadedModel, left: Iterable[tuple[int, dict, dict | None]]) -> None:
        options = {"task": next(iter(self.tasks)), "batch_size": self.filling.batch_size, "return_scores": True}
        by_line: dict[int, _Row] = {}
        for prediction in predict(*loaded, self._questions(left, by_line), on_failure=self._fail, **options):
            line, column = prediction.id
            row = by_line[line]
            if prediction.answers:
                self._take(row, column, prediction.answers[0])
            row.waiting.discard(column)
            self._write_finished(by_line)
        self._write_finished(by_line)

    def _look_back(self) -> tuple[int, bool]:
        """Number of rows that an earlier run could not fill, and whether the table has more rows."""
        done, num_failed = self.output.rows_done(), 0
        for line, row in self.table:
            if isinstance(row, Problem):
                continue
            if (before := next(done, None)) is None:
                return num_failed, True
            self.output.check_same(row, before, line)
            num_failed += bool(self._wanted(row, before))
        return num_failed, False

    def _wanted(self, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
        """The columns of a row to ask: cells without a value and without a score from an earlier run."""
        wanted = [name for name in self.tasks if self.filling.overwrite or not cell_text(row.get(name))]
        return [name for name in wanted if before is None or not cell_text(before.get(name + SCORE))]

    def _questions(
        self, left: Iterable[tuple[int, dict, dict | None]], by_line: dict[int, _Row]
    ) -> Iterator[dict[str, Any]]:
        """A row of `predict` per cell to fill; table rows are added to `rows`."""
        for line, row, before in left:
            wanted = self._wanted(row, before)
            self.counts["kept"] += 0 if before else len(self.tasks) - len(wanted)
            file = name_of_image(row.get(self.image_column))
            is_copy = before is not None and not wanted
            image = self._image(line, file) if wanted else None
            wanted = wanted if image else []
            by_line[line] = _Row(line, dict(before or row), set(wanted), is_copy)
            self.rows.append(by_line[line])
            self._write_finished(by_line)  # rows without anything to fill must not pile up
            for name in wanted:
                fields = {field: cell_text(row.get(field)) for field in self.tasks[name].fields}
                yield {**fields, "id": (line, name), "task": name, "image": image}

    def _image(self, line: int, name: str) -> os.PathLike | None:
        """The image of a row; None if it has none, which is said."""
        try:
            if name:
                return image_of(self.images.file(name), self.filling.cache_dir)
            self._fail((line, ""), ValueError(f"the column {self.image_column} is empty"))
        except ImageError as error:
            self._fail((line, ""), error)
        return None

    def _rows_left(self, again: bool) -> Iterator[tuple[int, dict[str, Any], dict[str, Any] | None]]:
        """Line, row of the table and row of an earlier run; rows of earlier runs only if they come `again`."""
        done = self.output.rows_done()
        for line, row in self.table:
            if isinstance(row, Problem):
                self.counts["failed"] += 1
                self.say(f"left out: {row}")
            elif (before := next(done, None)) is None or again:
                yield line, row, before

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
            if not row.is_copy:
                self.counts["rows"] += 1
                self.on_row()
