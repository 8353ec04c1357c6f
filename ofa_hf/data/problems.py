"""Faults of a data set: each one located, counted and written to a file."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    """One fault. `line` counts from 1: a row number where the source has no lines, 0 where it has neither."""

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


@dataclass(frozen=True)
class DataReport:
    """Outcome of loading a data set: usable rows and targets, and the number of problems of each kind."""

    rows: int
    targets: int
    problems: Mapping[str, int] = field(default_factory=dict)
    report_file: str = ""  # one line of JSON per problem

    def summary(self) -> str:
        """The report in one line."""
        text = f"{self.rows:,} rows with {self.targets:,} targets"
        if not self.problems:
            return f"{text}, no problems."
        found = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(self.problems.items()))
        return f"{text}; skipped: {found}. {self.report_file} lists each with its line."

    def __add__(self, other: "DataReport") -> "DataReport":
        files = " and ".join(filter(None, (self.report_file, other.report_file)))
        problems = Counter(self.problems) + Counter(other.problems)
        return DataReport(self.rows + other.rows, self.targets + other.targets, dict(problems), files)


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
    summary = {"rows": report.rows, "targets": report.targets, "problems": dict(report.problems)}
    write_json(folder / SUMMARY_FILE, summary)
