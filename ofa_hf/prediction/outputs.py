"""Where answers go: to the screen, or to a JSONL or CSV file that a later run resumes."""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ofa_hf.errors import UserError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS_BETWEEN_SYNCS = 5.0  # a power cut costs at most this much work

Answers = list[dict[str, Any]]  # of one image, best first: {"text": …, "score": …}


class Format(NamedTuple):
    """How the lines of an output look.

    Args:
        answer: what an answer is called, such as "caption"; its plural ends in s.
        num_answers: per image.
        model: which model gave the answers, in an output that holds those of several.
    """

    answer: str
    num_answers: int
    model: str | None = None

    def json_line(self, file: str, answers: Answers) -> str:
        """`{"file", "caption", "score"}` of the best answer, `"model"` after `"file"` and `"captions"` if several."""
        named = [{self.answer: answer["text"], **_score(answer)} for answer in answers]
        row = {"file": file, **({"model": self.model} if self.model else {}), **named[0]}
        if len(named) > 1:
            row[f"{self.answer}s"] = named
        return json.dumps(row, ensure_ascii=False) + "\n"

    def csv_line(self, file: str, answers: Answers) -> str:
        start = [file, self.model] if self.model else [file]
        return _csv_row([*start, *(value for answer in answers for value in (answer["text"], answer["score"]))])

    def csv_header(self) -> str:
        """`file,caption,score`, then `caption_2,score_2` and so on; with `model` after `file`."""
        start = ["file", "model"] if self.model else ["file"]
        ranks = ["", *(f"_{rank}" for rank in range(2, self.num_answers + 1))]
        return _csv_row([*start, *(f"{name}{rank}" for rank in ranks for name in (self.answer, "score"))])


def _score(answer: dict[str, Any]) -> dict[str, float]:
    return {"score": answer["score"]} if "score" in answer else {}


def _csv_row(values: list) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


class AnswerPrinter:
    """Print answers to stdout: one per line, after the names of file and model, or one JSON object per image."""

    done = frozenset()

    def __init__(self, format: Format, as_json: bool, with_names: bool):
        self.format, self.as_json, self.with_names = format, as_json, with_names

    def __enter__(self) -> "AnswerPrinter":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def write(self, file: str, answers: Answers) -> None:
        if self.as_json:
            lines = [self.format.json_line(file, answers)]
        else:
            names = [file] * self.with_names + [self.format.model] * bool(self.format.model)
            lines = ["\t".join([*names, answer["text"]]) + "\n" for answer in answers]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


def whole_lines(data: bytes, is_csv: bool) -> bytes:
    """Drop the line that a killed run left unfinished. In CSV, a line break inside quotes does not end a row."""
    end = data.rfind(b"\n") + 1
    while is_csv and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


class OutputRow(NamedTuple):
    """One image's line in an output file."""

    file: str
    model: str | None
    answers: list[str]  # best first
    line: str  # as it is in the file, with its line break

    @property
    def key(self) -> tuple[str | None, str]:
        return self.model, os.path.abspath(self.file)


class AnswerFile:
    """Append answers to a JSONL or CSV file; `done` holds the absolute paths that an earlier run finished.

    Args:
        path: ends in `.jsonl` or `.csv`.
        format: of its lines. `done` is about the format's model.

    Raises:
        UserError: another suffix, or a file that holds something else.
    """

    def __init__(self, path: str | os.PathLike, format: Format):
        self.path, self.format = Path(path), format
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() not in (".jsonl", ".json"):
            raise UserError(
                f"The output {self.path} has no known suffix. Accepted: .jsonl (one JSON object per line) and .csv. "
                f"Rename the output."
            )
        self._header = format.csv_header() if self.is_csv else ""
        self._errors = "surrogateescape" if self.is_csv else "backslashreplace"  # file names that are not UTF-8
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self.path, "ab+")  # noqa: SIM115 (closed by __exit__)
        try:
            self._lock()
            self.done = self._read_done()
        except BaseException:
            self._stream.close()
            raise
        self._last_sync = time.monotonic()

    def __enter__(self) -> "AnswerFile":
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
                f"The output {self.path} is being written by another run. Wait for it, or give another name."
            ) from error
        except OSError:  # a file system without locks
            pass

    def _read_done(self) -> set[str]:
        """Collect the finished images; once all lines are understood, remove a torn last one."""
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

    def answers(self) -> dict[str, list[str]]:
        """What the file holds now: absolute path → answers, best first."""
        self._stream.seek(0)
        return {os.path.abspath(row.file): row.answers for row in self._rows_of(self._stream.read())}

    def done_in(self, path: Path) -> set[str]:
        """Absolute paths that are finished in another file of this format, which may be being written now."""
        data = path.read_bytes() if path.exists() else b""
        return {os.path.abspath(row.file) for row in self._rows_of(whole_lines(data, self.is_csv))}

    def absorb(self, parts: Iterable[Path], order: Iterable[str]) -> None:
        """Take over the rows of other files of this format, in the order of the images and none twice; remove them.

        Safe at any moment: a part is removed once all its rows are on the disk here.
        """
        self._stream.seek(0)
        parts, known = list(parts), {row.key for row in self._all_rows(self._stream.read())}
        rows = {row.key: row for part in parts for row in self._all_rows(whole_lines(part.read_bytes(), self.is_csv))}
        places = {os.path.abspath(file): place for place, file in enumerate(order)}
        new = [row for key, row in rows.items() if key not in known]
        for row in sorted(new, key=lambda row: places.get(os.path.abspath(row.file), len(places))):
            self._stream.write(row.line.encode("utf-8", self._errors))
        self._sync()
        self.done |= {os.path.abspath(row.file) for row in new if row.model == self.format.model}
        for part in parts:
            part.unlink()

    def _rows_of(self, data: bytes) -> list[OutputRow]:
        """The rows of this format's model."""
        return [row for row in self._all_rows(data) if row.model == self.format.model]

    def _all_rows(self, data: bytes) -> list[OutputRow]:
        try:
            text = data.decode("utf-8", "surrogateescape" if self.is_csv else "strict")
            return list((self._csv_rows if self.is_csv else self._json_rows)(text))
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise UserError(
                f"The output {self.path} exists and was not written by such a run ({error}). Accepted: a new file, or "
                f"one that this command wrote with the same number of {self.format.answer}s per image, for one model "
                f"or for several as now. Give another name, or move the file away."
            ) from error

    def _csv_rows(self, text: str) -> Iterator[OutputRow]:
        if text and not text.startswith(self._header):
            raise ValueError(f"its first line is not {self._header.strip()!r}")
        start = 2 if self.format.model else 1
        for row in islice(csv.reader(io.StringIO(text, newline="")), 1, None):
            yield OutputRow(row[0], row[1] if self.format.model else None, row[start::2], _csv_row(row))

    def _json_rows(self, text: str) -> Iterator[OutputRow]:
        name = self.format.answer
        for line in filter(str.strip, text.split("\n")):
            row = json.loads(line)
            if ("model" in row) != (self.format.model is not None):
                raise ValueError("it names several models" if "model" in row else "it does not name the models")
            answers = [answer[name] for answer in row.get(f"{name}s", [row])]
            yield OutputRow(row["file"], row.get("model"), answers, f"{line}\n")

    def write(self, file: str, answers: Answers) -> None:
        """Append one image's line; each answer has `text` and `score`."""
        line = (self.format.csv_line if self.is_csv else self.format.json_line)(file, answers)
        self._stream.write(line.encode("utf-8", self._errors))
        self._stream.flush()
        if time.monotonic() - self._last_sync > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._last_sync = time.monotonic()
