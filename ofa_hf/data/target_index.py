"""The text side of a source (fields and targets by row id), kept on disk so that memory stays flat."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


MISSING = "missing: "  # prefix of the name of an image that was not found

SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, name TEXT, fields TEXT, file TEXT, line INTEGER, found INTEGER
);
CREATE TABLE targets (entry INTEGER, text TEXT, confidence REAL);
CREATE INDEX entries_by_name ON entries (name, fields);
CREATE INDEX targets_of_entry ON targets (entry);
"""


class TargetIndex:
    """Scratch database of one build, written by one process and then opened by every process that reads.

    Args:
        path: file of the database. None uses a temporary file that is removed on `close`.
    """

    def __init__(self, path: Path | None = None):
        is_new = path is None or not path.exists()
        self._database = sqlite3.connect(path or "", isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")  # a scratch file: after a crash the build starts again
        self._database.execute("PRAGMA journal_mode = OFF")
        if is_new:
            self._database.executescript(SCHEMA)
        self._database.execute("BEGIN")

    def add(
        self,
        row_id: str,
        targets: Sequence[str] = (),
        file: str = "",
        line: int = 0,
        name: str = "",
        fields: Mapping[str, str] | None = None,
        confidences: Sequence[float] = (),
    ) -> bool:
        """Append targets to a row. Returns False if the row exists; its name and fields are then kept.

        Args:
            name: file name of the row's image.
            fields: text columns that fill the task's prompt.
            confidences: confidences of the targets, if they have any.
        """
        added = self._database.execute(
            "INSERT OR IGNORE INTO entries (id, name, fields, file, line, found) VALUES (?, ?, ?, ?, ?, 0)",
            (row_id, name, _stored(fields), file, line),
        )
        is_new = added.rowcount == 1
        number = added.lastrowid if is_new else self._value("number", row_id)
        values = confidences or [None] * len(targets)
        rows = ((number, text, value) for text, value in zip(targets, values, strict=True))
        self._database.executemany("INSERT INTO targets VALUES (?, ?, ?)", rows)
        return is_new

    def _value(self, column: str, row_id: str) -> int | str | None:
        row = self._database.execute(f"SELECT {column} FROM entries WHERE id = ?", (row_id,)).fetchone()
        return row[0] if row else None

    def __contains__(self, row_id: str) -> bool:
        return self._value("number", row_id) is not None

    def name(self, row_id: str) -> str | None:
        """File name of the row's image; None if the id is unknown."""
        return self._value("name", row_id)

    def line(self, row_id: str) -> int | None:
        """Line on which the id was first seen; None if the id is unknown."""
        return self._value("line", row_id)

    def fields(self, row_id: str) -> dict[str, str]:
        """Text columns of the row; empty if the id is unknown."""
        return json.loads(self._value("fields", row_id) or "{}")

    def has_name(self, names: Sequence[str]) -> bool:
        """Whether a row's image has one of these file names."""
        query = f"SELECT 1 FROM entries WHERE name IN ({', '.join('?' * len(names))}) LIMIT 1"
        return self._database.execute(query, tuple(names)).fetchone() is not None

    def id_of(self, name: str, fields: Mapping[str, str]) -> str | None:
        """Id of the first row whose image has this file name and whose prompt has these fields."""
        query = "SELECT id FROM entries WHERE name = ? AND fields = ? ORDER BY number LIMIT 1"
        row = self._database.execute(query, (name, _stored(fields))).fetchone()
        return row[0] if row else None

    def id_of_name(self, name: str) -> str | None:
        """Id of the first row whose image has this file name."""
        query = "SELECT id FROM entries WHERE name = ? ORDER BY number LIMIT 1"
        row = self._database.execute(query, (name,)).fetchone()
        return row[0] if row else None

    def targets(self, row_id: str) -> list[str]:
        """Targets of the row in the order they were added; empty if the id is unknown."""
        query = "SELECT text FROM targets WHERE entry = ? ORDER BY rowid"
        return [text for (text,) in self._database.execute(query, (self._value("number", row_id),))]

    def confidences(self, row_id: str) -> list[float]:
        """Confidences of the row's targets; empty if they have none."""
        query = "SELECT confidence FROM targets WHERE entry = ? ORDER BY rowid"
        found = [value for (value,) in self._database.execute(query, (self._value("number", row_id),))]
        return [] if None in found else found

    def entries(self, first: int, last: int) -> Iterator[tuple[str, str, str, int]]:
        """Id, name, file and line of the entries first … last − 1, counted from 0 in the order they were added."""
        query = "SELECT id, name, file, line FROM entries WHERE number > ? AND number <= ? ORDER BY number"
        yield from self._database.execute(query, (first, last))

    def mark_found(self, row_id: str) -> None:
        """Record that the row's image exists."""
        self._database.execute("UPDATE entries SET found = 1 WHERE id = ?", (row_id,))

    def not_found(self) -> Iterator[tuple[str, str, str, int]]:
        """Id, name, file and line of the entries whose image was never found."""
        yield from self._database.execute("SELECT id, name, file, line FROM entries WHERE NOT found ORDER BY number")

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM entries").fetchone()[0]

    def commit(self) -> None:
        """Commit, so that other processes see what was written."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def close(self) -> None:
        self._database.execute("COMMIT")
        self._database.close()


def _stored(fields: Mapping[str, str] | None) -> str:
    return json.dumps(dict(fields or {}))
