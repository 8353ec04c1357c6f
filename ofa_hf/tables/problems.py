"""Problems of a data set: located, counted and written to a file."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.files import read_json, write_json


MALFORMED_LINE = "malformed line"
MISSING_ID = "missing id"
MISSING_FIELD = "missing field"
DUPLICATE_ID = "duplicate id"
BROKEN_IMAGE = "broken image"
EMPTY_TARGET = "empty target"
TARGETS_WITHOUT_IMAGE = "targets without image"
WITHOUT_TARGETS = "no targets"
UNFIT_ANSWER = "unfit answer"

REPORT_FILE, SUMMARY_FILE = "problems.jsonl", "summary.json"


@dataclass(frozen=True)
class Problem:
    """A problem. `line` counts from 1; it is a row number if the source has no lines, or 0."""

    kind: str
    file: str
    line: int
    id: str = ""
    detail: str = ""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        about = f" ({self.id})" if self.id else ""
        return f"{place}: {self.kind}{about}" + (f": {self.detail}" if self.detail else "")


class ProblemLog:
    """Counts problems and writes each as a line of JSON. In strict mode the first one is raised as `UserError`."""

    def __init__(self, path: Path, strict: bool = False):
        self.counts: Counter[str] = Counter()
        self.strict = strict
        self._lines = path.open("a", encoding="utf-8")

    def add(self, problem: Problem) -> None:
        if self.strict:
            raise UserError(f"{problem}. Fix it, or turn strict mode off to skip it.")
        self.counts[problem.kind] += 1
        self._lines.write(json.dumps(asdict(problem), ensure_ascii=False) + "\n")

    def add_all(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.add(problem)

    def __enter__(self) -> "ProblemLog":
        return self

    def __exit__(self, *exception) -> None:
        self._lines.close()


def stored_problems(path: str | Path) -> Iterator[Problem]:
    """The problems that a `ProblemLog` wrote to a file."""
    with open(path, encoding="utf-8") as lines:
        yield from (Problem(**json.loads(line)) for line in lines)


@dataclass(frozen=True)
class DataReport:
    """Result of loading a data set: usable rows and targets, and the number of problems of each kind.

    Args:
        assumed: how a table was read: kind, encoding, separator and columns.
        repaired: number of image names that had to be repaired, by kind.
        left_out: files of the folder that are not images or cannot be read here, by kind.
    """

    rows: int
    targets: int
    problems: Mapping[str, int] = field(default_factory=dict)
    report_file: str = ""  # one line of JSON per problem
    assumed: Mapping[str, Any] = field(default_factory=dict)
    repaired: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """The report in one line."""
        text = f"{self.rows:,} rows with {self.targets:,} targets"
        notes = "".join(f" {note}" for note in self.notes())
        if not self.problems:
            return f"{text}, no problems.{notes}"
        return f"{text}; skipped: {counted(self.problems)}. {self.report_file} lists each with its line.{notes}"

    def notes(self) -> list[str]:
        """A sentence each about what was assumed, repaired and left out."""
        notes = []
        if self.assumed:
            notes.append(f"Read as {describe_form(self.assumed)}.")
        if self.repaired:
            notes.append(f"Names of images repaired: {counted(self.repaired)}.")
        if self.left_out:
            notes.append(f"Left out of the folder: {counted(self.left_out)}.")
        return notes

    def __add__(self, other: "DataReport") -> "DataReport":
        files = " and ".join(filter(None, (self.report_file, other.report_file)))
        names = ("rows", "targets")
        numbers = {name: getattr(self, name) + getattr(other, name) for name in names}
        names = ("problems", "repaired", "left_out")
        counts = {name: dict(Counter(getattr(self, name)) + Counter(getattr(other, name))) for name in names}
        return DataReport(**numbers, **counts, assumed={**other.assumed, **self.assumed}, report_file=files)


def counted(kinds: Mapping[str, int]) -> str:
    """`2 × empty target, 1 × malformed line`"""
    return ", ".join(f"{count:,} × {kind}" for kind, count in sorted(kinds.items()))


def describe_form(assumed: Mapping[str, Any]) -> str:
    """How a table was read, in words: `csv, gb18030, separator ';', image in column 图片, caption in column 标题`."""
    parts = [assumed.get("kind"), assumed.get("encoding")]
    parts += [f"separator {assumed['separator']!r}"] if assumed.get("separator") else []
    parts += [f"sheet {assumed['sheet']}"] if assumed.get("sheet") else []
    parts += [f"not the sheets {', '.join(assumed['other_sheets'])}"] if assumed.get("other_sheets") else []
    parts += [f"{part} in column {column}" for part, column in assumed.get("columns", {}).items()]
    return ", ".join(filter(None, parts))


def report_of(dataset) -> DataReport:
    """Read the report of a data set that this package built; it is stored next to the Arrow files.

    Raises:
        UserError: the data set was not built by this package.
    """
    folders = sorted({Path(file["filename"]).parent for file in dataset.cache_files})
    if not folders or not all((folder / SUMMARY_FILE).is_file() for folder in folders):
        raise UserError(
            "This data set has no report because ofa_hf.data did not build it. Load it with load_muge, load_table or "
            "load_rows."
        )
    reports = [read_report(folder) for folder in folders]
    return sum(reports[1:], start=reports[0])


def read_report(folder: Path) -> DataReport:
    summary = read_json(folder / SUMMARY_FILE)
    return DataReport(**summary, report_file=str(folder / REPORT_FILE))


def write_report(folder: Path, report: DataReport) -> None:
    summary = {**vars(report), "problems": dict(report.problems)}
    del summary["report_file"]  # it is next to this one
    write_json(folder / SUMMARY_FILE, summary)
