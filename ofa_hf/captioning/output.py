"""Where captions go: to the screen, or to a JSONL or CSV file that a later run can continue."""

import csv
import io
import json
import os
import sys
import time
from pathlib import Path

from ofa_hf.errors import UserError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS_BETWEEN_SYNCS = 5.0  # a power cut costs at most this much work


def json_line(file: str, captions: list[dict]) -> str:
    """`{"file", "caption", "score"}` of the best caption, with `"captions"` when there are several."""
    row = {"file": file, **captions[0]}
    if len(captions) > 1:
        row["captions"] = captions
    return json.dumps(row, ensure_ascii=False) + "\n"


def csv_line(file: str, captions: list[dict]) -> str:
    return _csv_row([file, *(value for row in captions for value in (row["caption"], row["score"]))])


def csv_header(num_captions: int) -> str:
    """`file,caption,score`, then `caption_2,score_2` and so on."""
    more = (name for rank in range(2, num_captions + 1) for name in (f"caption_{rank}", f"score_{rank}"))
    return _csv_row(["file", "caption", "score", *more])


def _csv_row(values: list) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


class CaptionPrinter:
    """Print captions to stdout: one a line, with the file's name before it, or one JSON object a picture."""

    done = frozenset()

    def __init__(self, as_json: bool, with_names: bool):
        self.as_json, self.with_names = as_json, with_names

    def __enter__(self) -> "CaptionPrinter":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def write(self, file: str, captions: list[dict]) -> None:
        name = f"{file}\t" if self.with_names else ""
        lines = [json_line(file, captions)] if self.as_json else [f"{name}{row['caption']}\n" for row in captions]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


def whole_lines(data: bytes, is_csv: bool) -> bytes:
    """Drop the line that a killed run left unfinished. In CSV a line break inside quotes ends no row."""
    end = data.rfind(b"\n") + 1
    while is_csv and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


class CaptionFile:
    """Append captions to a JSONL or CSV file; `done` holds the absolute paths that an earlier run finished.

    Args:
        path: ends in `.jsonl` or `.csv`.
        num_captions: captions for each picture.

    Raises:
        UserError: another ending, or a file that holds something else.
    """

    def __init__(self, path: str | os.PathLike, num_captions: int):
        self.path = Path(path)
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() not in (".jsonl", ".json"):
            raise UserError(
                f"--output {self.path} has no known ending. Accepted: .jsonl (one JSON object a line) and .csv. "
                f"Rename the output."
            )
        self._header = csv_header(num_captions) if self.is_csv else ""
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
        """Collect the finished pictures; only when all lines are understood, remove a torn last one."""
        self._stream.seek(0)
        data = self._stream.read()
        kept = whole_lines(data, self.is_csv)
        files = self._files_of(kept)
        if len(kept) < len(data):
            self._stream.truncate(len(kept))
        if not kept:
            self._stream.write(self._header.encode())
            self._stream.flush()
        return {os.path.abspath(file) for file in files}

    def _files_of(self, data: bytes) -> list[str]:
        try:
            text = data.decode("utf-8", "surrogateescape" if self.is_csv else "strict")
            if self.is_csv:
                if text and not text.startswith(self._header):
                    raise ValueError(f"its first line is not {self._header.strip()!r}")
                return [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
            return [json.loads(line)["file"] for line in text.split("\n") if line.strip()]
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise UserError(
                f"--output {self.path} exists and is not the output of such a run ({error}). Accepted: a new file, or "
                f"one that this command wrote with the same --num-captions. Give another name, or move the file away."
            ) from error

    def write(self, file: str, captions: list[dict]) -> None:
        """Append one picture's line; each of the captions has `caption` and `score`."""
        line = (csv_line if self.is_csv else json_line)(file, captions)
        self._stream.write(line.encode("utf-8", self._errors))
        self._stream.flush()
        if time.monotonic() - self._last_sync > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._last_sync = time.monotonic()
