"""Where captions go: to the screen, or to a JSONL or CSV file that a later run can continue."""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ofa_hf.errors import UserError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS_BETWEEN_SYNCS = 5.0  # a power cut costs at most this much work


def json_line(file: str, captions: list[dict], model: str | None = None) -> str:
    """`{"file", "caption", "score"}` of the best caption, with `"captions"` when there are several.

    Args:
        model: who said it, where several are compared: `"model"` comes after `"file"`.
    """
    row = {"file": file, **({"model": model} if model else {}), **captions[0]}
    if len(captions) > 1:
        row["captions"] = captions
    return json.dumps(row, ensure_ascii=False) + "\n"


def csv_line(file: str, captions: list[dict], model: str | None = None) -> str:
    start = [file, model] if model else [file]
    return _csv_row([*start, *(value for row in captions for value in (row["caption"], row["score"]))])


def csv_header(num_captions: int, with_model: bool = False) -> str:
    """`file,caption,score`, then `caption_2,score_2` and so on; with `model` after `file`."""
    start = ["file", "model"] if with_model else ["file"]
    more = (name for rank in range(2, num_captions + 1) for name in (f"caption_{rank}", f"score_{rank}"))
    return _csv_row([*start, "caption", "score", *more])


def _csv_row(values: list) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


class CaptionPrinter:
    """Print captions to stdout: one a line, after the file's and the model's name, or one JSON object per image."""

    done = frozenset()

    def __init__(self, as_json: bool, with_names: bool, model: str | None = None):
        self.as_json, self.with_names, self.model = as_json, with_names, model

    def __enter__(self) -> "CaptionPrinter":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def write(self, file: str, captions: list[dict]) -> None:
        if self.as_json:
            lines = [json_line(file, captions, self.model)]
        else:
            names = [file] * self.with_names + [self.model] * bool(self.model)
            lines = ["\t".join([*names, row["caption"]]) + "\n" for row in captions]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


def whole_lines(data: bytes, is_csv: bool) -> bytes:
    """Drop the line that a killed run left unfinished. In CSV a line break inside quotes ends no row."""
    end = data.rfind(b"\n") + 1
    while is_csv and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


class Row(NamedTuple):
    """One image's line in a caption file."""

    file: str
    model: str | None
    captions: list[str]  # best first
    line: str  # as it stands there, with its end

    @property
    def key(self) -> tuple[str | None, str]:
        return self.model, os.path.abspath(self.file)


class CaptionFile:
    """Append captions to a JSONL or CSV file; `done` holds the absolute paths that an earlier run finished.

    Args:
        path: ends in `.jsonl` or `.csv`.
        num_captions: captions for each image.
        model: whose captions they are, in a file that holds those of several models; `done` is about this one.

    Raises:
        UserError: another ending, or a file that holds something else.
    """

    def __init__(self, path: str | os.PathLike, num_captions: int, model: str | None = None):
        self.path, self.model = Path(path), model
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() not in (".jsonl", ".json"):
            raise UserError(
                f"--output {self.path} has no known ending. Accepted: .jsonl (one JSON object a line) and .csv. "
                f"Rename the output."
            )
        self._header = csv_header(num_captions, model is not None) if self.is_csv else ""
        self._errors = "surrogateescape" if self.is_csv else "backslashreplace"  # names that are no UTF-8
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self.path, "ab+")  # noqa: SIM115 (closed by __exit__)
        try:
            self._lock()
            self.done = self._read_done()
        except BaseException:
            self._stream.close()
            raise
        self._last_sync = time.monotonic()

    def __enter__(self) -> "CaptionFile":
        return self

    def __exit__(self, *exception) -> None:
        self._sync()
        self._stream.close()

    def _lock(self) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--output {self.path} is being written by another run. Wait for it, or give another name."
            ) from error
        except OSError:  # a file system without locks
            pass

    def _read_done(self) -> set[str]:
        """Collect the finished images; only when all lines are understood, remove a torn last one."""
        self._stream.seek(0)
        data = self._stream.read()
        kept = whole_lines(data, self.is_csv)
        done = {os.path.abspath(row.file) for row in self._rows_of(kept)}
        if len(kept) < len(data):
            self._stream.truncate(len(kept))
        if not kept:
            self._stream.write(self._header.encode())
            self._stream.flush()
        return done

    def captions(self) -> dict[str, list[str]]:
        """What the file holds now: absolute path → captions, best first."""
        self._stream.seek(0)
        return {os.path.abspath(row.file): row.captions for row in self._rows_of(self._stream.read())}

    def done_in(self, path: Path) -> set[str]:
        """Absolute paths that are finished in another file of this kind, which somebody may be writing now."""
        data = path.read_bytes() if path.exists() else b""
        return {os.path.abspath(row.file) for row in self._rows_of(whole_lines(data, self.is_csv))}

    def absorb(self, parts: Iterable[Path], order: Iterable[str]) -> None:
        """Take over the rows of other files of this kind, in the order of the images and none twice; remove them.

        Safe at any moment: a part is removed when all of its rows are on the disk here.
        """
        self._stream.seek(0)
        parts, known = list(parts), {row.key for row in self._all_rows(self._stream.read())}
        rows = {row.key: row for part in parts for row in self._all_rows(whole_lines(part.read_bytes(), self.is_csv))}
        places = {os.path.abspath(file): place for place, file in enumerate(order)}
        new = [row for key, row in rows.items() if key not in known]
        for row in sorted(new, key=lambda row: places.get(os.path.abspath(row.file), len(places))):
            self._stream.write(row.line.encode("utf-8", self._errors))
        self._sync()
        self.done |= {os.path.abspath(row.file) for row in new if row.model == self.model}
        for part in parts:
            part.unlink()

    def _rows_of(self, data: bytes) -> list[Row]:
        """This model's images and captions."""
        return [row for row in self._all_rows(data) if row.model == self.model]

    def _all_rows(self, data: bytes) -> list[Row]:
        try:
            text = data.decode("utf-8", "surrogateescape" if self.is_csv else "strict")
            return list((self._csv_rows if self.is_csv else self._json_rows)(text))
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise UserError(
                f"--output {self.path} exists and is not the output of such a run ({error}). Accepted: a new file, or "
                f"one that this command wrote with the same --num-captions, and like now for one model or for "
                f"several. Give another name, or move the file away."
            ) from error

    def _csv_rows(self, text: str) -> Iterator[Row]:
        if text and not text.startswith(self._header):
            raise ValueError(f"its first line is not {self._header.strip()!r}")
        start = 2 if self.model else 1
        for row in islice(csv.reader(io.StringIO(text, newline="")), 1, None):
            yield Row(row[0], row[1] if self.model else None, row[start::2], _csv_row(row))

    def _json_rows(self, text: str) -> Iterator[Row]:
        for line in filter(str.strip, text.split("\n")):
            row = json.loads(line)
            if ("model" in row) != (self.model is not None):
                raise ValueError("it names several models" if "model" in row else "it does not name the models")
            captions = [entry["caption"] for entry in row.get("captions", [row])]
            yield Row(row["file"], row.get("model"), captions, f"{line}\n")

    def write(self, file: str, captions: list[dict]) -> None:
        """Append one image's line; each of the captions has `caption` and `score`."""
        line = (csv_line if self.is_csv else json_line)(file, captions, self.model)
        self._stream.write(line.encode("utf-8", self._errors))
        self._stream.flush()
        if time.monotonic() - self._last_sync > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._last_sync = time.monotonic()
