"""Outputs of answers: the screen, or a JSONL or CSV file that a later run resumes."""

import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ofa_hf.boxes_ofa import SIDES, parse_box
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import URL_PREFIXES
from ofa_hf.prediction.output_forms import MARK, CsvForm, form_of


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SECONDS_BETWEEN_SYNCS = 5.0  # a power cut costs at most this much work

Answers = list[dict[str, Any]]  # of one row, best first: {"text": …, "score": …}, or a "box" with its image's "size"
Name = str | tuple[str, ...]  # name of a row, such as a file, or a file and a question

SCORES = ("score", "clip_score")  # keys of scores: the model's, and CLIP's for drawn images
PLURALS = {"box": "boxes", "summary": "summaries"}
NOT_THERE = "none"  # printed instead of a box


class Box(NamedTuple):
    """A box in an output: four sides in pixels, or None if nothing was found; score and image size."""

    sides: tuple[float, ...] | None
    score: float
    size: tuple[int, int]

    def __str__(self) -> str:
        return NOT_THERE if self.sides is None else f"{box_text(self.sides)} ({self.score:.2f})"


def box_text(sides: Iterable[float] | None) -> str:
    """`xmin,ymin,xmax,ymax`, as in tables; empty without a box."""
    return "" if sides is None else ",".join(f"{side:.2f}".rstrip("0").rstrip(".") for side in sides)


def sides_of(box: dict[str, float] | None) -> tuple[float, ...] | None:
    """A box as four numbers with two decimals."""
    return None if box is None else tuple(round(box[side], 2) for side in SIDES)


def absolute(file: str) -> str:
    return file if file.startswith(URL_PREFIXES) else os.path.abspath(file)


class Format(NamedTuple):
    """The format of the lines of an output.

    Args:
        answer: name of an answer, such as "caption".
        num_answers: answers per row.
        model: model of the answers, in an output of several models.
        names: names of the parts of a row's name: its file, and the texts that were asked.
        has_boxes: answers are boxes; lines then also have the `width` and `height` of the image.
    """

    answer: str
    num_answers: int
    model: str | None = None
    names: tuple[str, ...] = ("file",)
    has_boxes: bool = False

    @property
    def plural(self) -> str:
        return PLURALS.get(self.answer, f"{self.answer}s")

    def parts(self, name: Name) -> tuple[str, ...]:
        return (name,) if isinstance(name, str) else name

    def key(self, name: Name) -> Name:
        """A name with the absolute path of its file, which identifies a row from every working directory."""
        parts = zip(self.names, self.parts(name), strict=True)
        parts = tuple(absolute(part) if title == "file" else part for title, part in parts)
        return parts[0] if len(parts) == 1 else parts

    def json_line(self, name: Name, answers: Answers) -> str:
        """`{"file", "caption", "score"}` of the best answer, `"model"` after the name and `"captions"` if several."""
        named = [{self.answer: self._json_value(answer), **_score(answer)} for answer in answers]
        row = dict(zip(self.names, self.parts(name), strict=True))
        row |= {"model": self.model} if self.model else {}
        row |= dict(zip(("width", "height"), answers[0]["size"])) if self.has_boxes else {}
        row |= named[0]
        if len(named) > 1:
            row[self.plural] = named
        return json.dumps(row, ensure_ascii=False) + "\n"

    def _json_value(self, answer: dict[str, Any]) -> Any:
        if not self.has_boxes:
            return answer["text"]
        sides = sides_of(answer["box"])
        return sides and dict(zip(SIDES, sides, strict=True))

    def csv_cells(self, name: Name, answers: Answers) -> list[Any]:
        start = [*self.parts(name), *([self.model] if self.model else []), *self._sizes(answers)]
        return [*start, *(value for answer in answers for value in (self.text_of(answer), answer["score"]))]

    def _sizes(self, answers: Answers) -> tuple[int, ...]:
        return tuple(answers[0]["size"]) if self.has_boxes else ()

    def text_of(self, answer: dict[str, Any]) -> str:
        return box_text(sides_of(answer["box"])) if self.has_boxes else answer["text"]

    @property
    def first_columns(self) -> list[str]:
        """Columns before the first answer."""
        return [*self.names, *["model"] * bool(self.model), *["width", "height"] * self.has_boxes]

    @property
    def csv_header(self) -> list[str]:
        """`file,caption,score`, then `caption_2,score_2` and so on; with `model` after the name."""
        ranks = ["", *(f"_{rank}" for rank in range(2, self.num_answers + 1))]
        return [*self.first_columns, *(f"{name}{rank}" for rank in ranks for name in (self.answer, "score"))]

    def read_csv(self, cells: list[str]) -> tuple[Name, str | None, list[Any]]:
        """Name, model and answers of a line that `csv_line` made."""
        first = dict(zip(self.first_columns, cells))
        rest = cells[len(self.first_columns) :]
        answers = rest[::2]
        if self.has_boxes:
            size = int(first["width"]), int(first["height"])
            scores = map(float, rest[1::2])
            answers = [Box(parse_box(box) if box else None, *of) for box, *of in zip(answers, scores, repeat(size))]
        return self._name_in(first), first.get("model") if self.model else None, answers

    def read_json(self, row: dict[str, Any]) -> tuple[Name, str | None, list[Any]]:
        """Name, model and answers of a line that `json_line` made."""
        if (("model" in row) and "model" not in self.names) != (self.model is not None):
            raise ValueError("it names several models" if "model" in row else "it does not name the models")
        answers = [(answer[self.answer], answer.get("score")) for answer in row.get(self.plural, [row])]
        if not self.has_boxes:
            return self._name_in(row), row.get("model") if self.model else None, [text for text, _ in answers]
        size = row["width"], row["height"]
        boxes = [Box(box and tuple(box[side] for side in SIDES), score, size) for box, score in answers]
        return self._name_in(row), row.get("model") if self.model else None, boxes

    def _name_in(self, row: dict[str, Any]) -> Name:
        parts = tuple(row[name] for name in self.names)
        return parts[0] if len(parts) == 1 else parts


def _score(answer: dict[str, Any]) -> dict[str, float]:
    return {name: answer[name] for name in SCORES if name in answer}


class AnswerPrinter:
    """Print answers to stdout: one per line, after the names of row and model, or one JSON object per row."""

    done = frozenset()

    def __init__(self, format: Format, as_json: bool, with_names: bool):
        self.format, self.as_json, self.with_names = format, as_json, with_names

    def __enter__(self) -> "AnswerPrinter":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def write(self, name: Name, answers: Answers) -> None:
        format = self.format
        if self.as_json:
            lines = [format.json_line(name, answers)]
        else:
            names = [*format.parts(name)] * self.with_names + [format.model] * bool(format.model)
            texts = (format.text_of(answer) or NOT_THERE * format.has_boxes for answer in answers)
            lines = ["\t".join([*map(on_one_line, names), text]) + "\n" for text in texts]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


def on_one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text or "\t" in text else text


def whole_lines(data: bytes, is_csv: bool) -> bytes:
    """Drop the incomplete line of a killed run. In CSV, a line break inside quotes does not end a row."""
    end = data.rfind(b"\n") + 1
    while is_csv and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


class OutputRow(NamedTuple):
    """One row's line in an output file."""

    key: Name  # the name, with the absolute path of its file
    model: str | None
    answers: list[Any]  # best first: texts or boxes
    line: str  # as in the file, with its line break


def lock(stream: BinaryIO, path: Path) -> None:
    """Lock an open file against other runs until it is closed.

    Raises:
        UserError: another run is writing it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"The output {path} is being written by another run. Wait for it, or choose another name."
        ) from error
    except OSError:  # a file system without locks
        pass


class AnswerFile:
    """Append answers to a JSONL or CSV file; `done` holds the keys of rows that an earlier run finished.

    File names are written so that they are valid from the folder of the output: unchanged if they are absolute or
    relative to it, otherwise absolute. A CSV that a spreadsheet application has saved again is continued in its form.

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
                f"The output {self.path} has no known suffix. Accepted: .csv, .jsonl (one JSON object per line) and "
                f".xlsx. Rename the output."
            )
        self._form = CsvForm()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "ab+")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise UserError(
                f"The output {self.path} cannot be written: {error.strerror}. Pass a path in a folder that you may "
                f"write to."
            ) from error
        try:
            lock(self._stream, self.path)
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

    def _read_done(self) -> set[str]:
        """Collect the finished rows; if all lines are valid, remove an incomplete last one."""
        self._stream.seek(0)
        data = self._stream.read()
        kept = whole_lines(data, self.is_csv)
        if self.is_csv and kept:
            with self._explain():
                self._form = form_of(kept, self.format.csv_header)
            if form := self._form_of_last_row(data, data[len(kept) :]):
                self._form, end = form, form.encode(form.line_end)
                self._stream.write(end)
                self._stream.flush()
                kept = data + end
        done = {row.key for row in self._rows_of(kept)}
        if not kept:
            self._refuse_foreign_start(data)
        if len(kept) < len(data):
            self._stream.truncate(len(kept))
        if not kept and self.is_csv:
            self._stream.write(MARK + self._form.encode(self._form.line(self.format.csv_header)))
            self._stream.flush()
        return done

    def _form_of_last_row(self, data: bytes, rest: bytes) -> CsvForm | None:
        """The form of the file if what follows its last line end is a row too, as some spreadsheets write the last
        one; our own rows are only whole with their line end."""
        if not rest or self._form == CsvForm():
            return None
        try:
            form = form_of(data, self.format.csv_header)
            cells = next(csv.reader([form.decode(rest)], delimiter=form.separator, strict=True), [])
            is_row = len(cells) == len(self.format.csv_header) and math.isfinite(float(cells[-1].replace(",", ".")))
        except (ValueError, csv.Error):  # half a row, or half a character
            return None
        return form if is_row else None

    def _refuse_foreign_start(self, data: bytes) -> None:
        """A file with only an incomplete line is ours only if it could be the start of one of our lines."""
        header = self._form.encode(self._form.line(self.format.csv_header))
        is_ours = any(start.startswith(data) for start in (header, MARK + header))
        with self._explain():
            if not (is_ours if self.is_csv else data[:1] in (b"", b"{")):
                raise ValueError(f"it starts with {data[:20]!r}")

    def answers(self) -> dict[Name, list[Any]]:
        """The content of the file: key → answers, best first."""
        self._stream.seek(0)
        return {row.key: row.answers for row in self._rows_of(self._stream.read())}

    def done_in(self, path: Path) -> set[Name]:
        """Finished keys in another file of this format, which can be open for writing."""
        data = path.read_bytes() if path.exists() else b""
        return {row.key for row in self._rows_of(whole_lines(data, self.is_csv))}

    def absorb(self, parts: Iterable[Path], order: Iterable[Name]) -> None:
        """Append the rows of other files of this format, in the given order and without repetition; remove them.

        Safe to interrupt: a file is removed only after all its rows are on disk.
        """
        self._stream.seek(0)
        parts, known = list(parts), {row[:2] for row in self._all_rows(self._stream.read())}
        rows = [row for part in parts for row in self._all_rows(whole_lines(part.read_bytes(), self.is_csv))]
        places = {self.format.key(name): place for place, name in enumerate(order)} if rows else {}
        new = [row for name, row in {row[:2]: row for row in rows}.items() if name not in known]
        for row in sorted(new, key=lambda row: places.get(row.key, len(places))):
            self._stream.write(self._encode(row.line))
        self._sync()
        self.done |= {row.key for row in new if row.model == self.format.model}
        for part in parts:
            part.unlink()

    def _rows_of(self, data: bytes) -> list[OutputRow]:
        """The rows of this format's model."""
        return [row for row in self._all_rows(data) if row.model == self.format.model]

    def _all_rows(self, data: bytes) -> list[OutputRow]:
        with self._explain():
            return list(self._csv_rows(data) if self.is_csv else self._json_rows(data.decode("utf-8")))

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise UserError(
                f"The output {self.path} exists and was not written by such a run ({error}). Accepted: a new file, or "
                f"one that this command wrote with the same number of {self.format.plural} per row, for one model "
                f"or for several as now. Choose another name, or move the file away."
            ) from error

    def _csv_rows(self, data: bytes) -> Iterator[OutputRow]:
        form = form_of(data, self.format.csv_header) if data else self._form
        lines = csv.reader(io.StringIO(form.decode(data), newline=""), delimiter=form.separator)
        for row in islice(lines, 1, None):
            if not any(row):
                continue
            name, model, answers = self.format.read_csv(row)
            yield OutputRow(self._key(name), model, answers, self._form.line(row))

    def _json_rows(self, text: str) -> Iterator[OutputRow]:
        for line in filter(str.strip, text.split("\n")):
            name, model, answers = self.format.read_json(json.loads(line))
            yield OutputRow(self._key(name), model, answers, f"{line}\n")

    def _key(self, name: Name) -> Name:
        """Key of a name in the file; a path that exists relative to the output's folder is read from there."""
        return self.format.key(self._with_file(name, self._from_output))

    def _from_output(self, file: str) -> str:
        place = os.path.join(self.path.parent, file)
        return place if not os.path.isabs(file) and os.path.exists(place) else file

    def _in_full(self, file: str) -> str:
        """A path for the output: absolute if it would be another file relative to the output's folder."""
        is_relative = not os.path.isabs(file) and not file.startswith(URL_PREFIXES)
        is_elsewhere = is_relative and os.path.exists(file) and os.path.abspath(self.path.parent) != os.getcwd()
        return os.path.abspath(file) if is_elsewhere else file

    def _with_file(self, name: Name, change: Callable[[str], str]) -> Name:
        parts = zip(self.format.names, self.format.parts(name), strict=True)
        parts = tuple(change(part) if title == "file" else part for title, part in parts)
        return parts[0] if isinstance(name, str) else parts

    def write(self, name: Name, answers: Answers) -> None:
        """Append one row's line; each answer has a `text`, or a `box` and the `size` of its image, and a `score`."""
        name = self._with_file(name, self._in_full)
        if self.is_csv:
            line = self._form.line(self.format.csv_cells(name, answers))
        else:
            line = self.format.json_line(name, answers)
        self._stream.write(self._encode(line))
        self._stream.flush()
        if time.monotonic() - self._last_sync > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _encode(self, line: str) -> bytes:
        return self._form.encode(line) if self.is_csv else line.encode("utf-8", "backslashreplace")

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._last_sync = time.monotonic()
