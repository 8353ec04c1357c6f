"""Captions under their image's id, kept on disk: a million cost no memory and several processes can read them."""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path


SCHEMA = """
CREATE TABLE images (
    number INTEGER PRIMARY KEY, image_id TEXT UNIQUE, name TEXT, file TEXT, line INTEGER, found INTEGER
);
CREATE TABLE captions (image INTEGER, text TEXT);
CREATE INDEX images_by_name ON images (name);
CREATE INDEX captions_of_image ON captions (image);
"""


class CaptionIndex:
    """A scratch database of one build. Written by one process, then opened again by each that reads.

    Without a path it lies in a temporary file of its own that vanishes when it is closed.
    """

    def __init__(self, path: Path | None = None):
        is_new = path is None or not path.exists()
        self._database = sqlite3.connect(path or "", isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")  # a scratch file: after a crash the build starts again
        self._database.execute("PRAGMA journal_mode = OFF")
        if is_new:
            self._database.executescript(SCHEMA)
        self._database.execute("BEGIN")

    def add(self, image_id: str, captions: Sequence[str] = (), file: str = "", line: int = 0, name: str = "") -> bool:
        """Add captions to an image's. `name` is where its image lies. Returns False if the image was known."""
        added = self._database.execute(
            "INSERT OR IGNORE INTO images (image_id, name, file, line, found) VALUES (?, ?, ?, ?, 0)",
            (image_id, name, file, line),
        )
        is_new = added.rowcount == 1
        number = added.lastrowid if is_new else self.number(image_id)
        self._database.executemany("INSERT INTO captions VALUES (?, ?)", ((number, text) for text in captions))
        return is_new

    def number(self, image_id: str) -> int | None:
        row = self._database.execute("SELECT number FROM images WHERE image_id = ?", (image_id,)).fetchone()
        return row[0] if row else None

    def name(self, image_id: str) -> str | None:
        """Where the image lies; None if the id is unknown."""
        row = self._database.execute("SELECT name FROM images WHERE image_id = ?", (image_id,)).fetchone()
        return row[0] if row else None

    def line(self, image_id: str) -> int | None:
        """Where the id was first seen; None if it is unknown."""
        row = self._database.execute("SELECT line FROM images WHERE image_id = ?", (image_id,)).fetchone()
        return row[0] if row else None

    def has_name(self, names: Sequence[str]) -> bool:
        """Whether an image lies under one of these names."""
        query = f"SELECT 1 FROM images WHERE name IN ({', '.join('?' * len(names))}) LIMIT 1"
        return self._database.execute(query, tuple(names)).fetchone() is not None

    def captions(self, image_id: str) -> list[str]:
        """The image's captions in the order they were added; empty if it is unknown."""
        query = "SELECT text FROM captions WHERE image = ? ORDER BY rowid"
        return [text for (text,) in self._database.execute(query, (self.number(image_id),))]

    def images(self, first: int, last: int) -> Iterator[tuple[str, str, str, int]]:
        """Id, name, file and line of the images first … last − 1, counted from 0 in the order they were added."""
        query = "SELECT image_id, name, file, line FROM images WHERE number > ? AND number <= ? ORDER BY number"
        yield from self._database.execute(query, (first, last))

    def mark_found(self, image_id: str) -> None:
        self._database.execute("UPDATE images SET found = 1 WHERE image_id = ?", (image_id,))

    def not_found(self) -> Iterator[tuple[str, str, int]]:
        """Id, file and line of the captions whose image never came."""
        yield from self._database.execute("SELECT image_id, file, line FROM images WHERE NOT found ORDER BY number")

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM images").fetchone()[0]

    def commit(self) -> None:
        """Make what was written visible to other processes."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def close(self) -> None:
        self._database.execute("COMMIT")
        self._database.close()
