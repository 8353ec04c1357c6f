"""The output of `fill`: the rows of a table with columns filled; an interrupted run can be resumed."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.prediction.outputs import lock, whole_lines
from ofa_hf.prediction.questions import cell_text
from ofa_hf.tables.table_files import Table


SCORE = "_score"  # suffix of the column with the probabilities of a column's values
MARK = "\ufeff"  # needed at the start of a CSV for Chinese text in spreadsheet applications


class FilledTable:
    """The output table: `.csv` for spreadsheets, or `.jsonl`. An incomplete row of a killed run is redone.

    To write rows again, a draft next to the table is filled, which replaces it at the end. If a run is killed before
    that, the next one starts with the rows of the draft.

    Args:
        columns: columns to fill; new ones are added after the existing ones, each followed by its score.

    Raises:
        UserError: another suffix, a file that cannot be written, or one that holds something else.
    """

    def __init__(self, path: str | os.PathLike, table: Table, columns: Sequence[str]):
        self.path, self.table = Path(path), table
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() != ".jsonl":
            raise UserError(f"The output {self.path} has no known suffix. Accepted: .csv and .jsonl. Rename it.")
        if self.path.exists() and table.path.resolve() == self.path.resolve():
            raise UserError(f"The output {self.path} is the table itself, which is never changed. Pass another name.")
        added = [name for column in columns for name in (column, column + SCORE) if name not in table.columns]
        self.columns = [*table.columns, *added]
        self.filled = {name for column in columns for name in (column, column + SCORE)}
        self.draft = self.path.with_name(f".{self.path.name}.draft")
        self._draft_stream = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            if self.draft.exists():
                self._take_draft()
                self._open()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}. Pass another --output.") from error
        self.num_rows = sum(1 for _ in self.rows_done())

    def __enter__(self) -> "FilledTable":
        return self

    def __exit__(self, *exception) -> None:
        if self._draft_stream:
            self._draft_stream.close()
            self._take_draft()
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _open(self) -> None:
        """Open and lock the file. If it is ours, remove an incomplete last row; otherwise start a new file."""
        self._stream = self.path.open("ab+")  # closed by __exit__
        try:
            lock(self._stream, self.path)
            self._stream.seek(0)
            data = self._stream.read()
            kept = whole_lines(data, self.is_csv)
            start = self._header or b"{"
            if data and not (data.startswith(start) or start.startswith(data)):
                raise self._foreign("its columns are others")
            if len(kept) < len(data):
                self._stream.truncate(len(kept))
            if not kept:
                self._stream.write(self._header)
            self._stream.flush()
        except BaseException:
            self._stream.close()
            raise

    @property
    def _header(self) -> bytes:
        return (MARK + self._line(dict(zip(self.columns, self.columns)))).encode() if self.is_csv else b""

    def write_again(self) -> None:
        """From now on, write all rows of the table, including existing ones."""
        self._draft_stream = self.draft.open("wb")
        self._draft_stream.write(self._header)

    def _take_draft(self) -> None:
        """Replace the file by the rows of the draft and, after a killed run, its later rows."""
        kept = whole_lines(self.draft.read_bytes(), self.is_csv)
        with self.draft.open("ab") as draft:
            draft.truncate(len(kept))
            draft.write(b"" if kept else self._header)
            draft.flush()
            num_rows = sum(1 for _ in self._rows_in(self.draft))
            for row in islice(self.rows_done(), num_rows, None):
                draft.write(self._encoded(row))
            draft.flush()
            os.fsync(draft.fileno())
        self._stream.close()
        os.replace(self.draft, self.path)

    def _foreign(self, reason: str) -> UserError:
        return UserError(
            f"The output {self.path} exists and was not made of {self.table.path} with these columns: {reason}. Pass "
            f"another name, or move the file away."
        )

    def rows_done(self) -> Iterator[dict[str, Any]]:
        """The rows in the file."""
        yield from self._rows_in(self.path)

    def _rows_in(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            try:
                yield from csv.DictReader(stream) if self.is_csv else map(json.loads, filter(str.strip, stream))
            except (ValueError, csv.Error) as error:
                raise self._foreign(str(error)) from error

    def check_same(self, row: Mapping[str, Any], done: Mapping[str, Any], line: int) -> None:
        """Refuse to continue a table with other rows.

        Raises:
            UserError: a column that is not filled differs.
        """
        for name in self.table.columns:
            if name not in self.filled and cell_text(row.get(name)) != cell_text(done.get(name)):
                raise self._foreign(f"line {line} of the table has another {name}")

    def write(self, row: Mapping[str, Any]) -> None:
        stream = self._draft_stream or self._stream
        stream.write(self._encoded(row))
        stream.flush()

    def _encoded(self, row: Mapping[str, Any]) -> bytes:
        return self._line(row).encode("utf-8", "backslashreplace")

    def _line(self, row: Mapping[str, Any]) -> str:
        if not self.is_csv:
            values = {name: row.get(name) for name in self.columns}
            return json.dumps(values, ensure_ascii=False, default=str) + "\n"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_csv_cell(row.get(name)) for name in self.columns])
        return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else value
