"""Check data as finetuning would read it: what would be trained on, what was assumed, and what is odd."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from ofa_hf.checking.image_check import check_images
from ofa_hf.checking.text_check import are_sentences, check_texts, texts_of, vocabulary_of
from ofa_hf.data.answers import TargetForm
from ofa_hf.data.build import NoUsableRow
from ofa_hf.data.sources import TableForm, as_read, has_its_images, load_source
from ofa_hf.errors import UserError
from ofa_hf.tables.problems import DataReport, Problem, counted, describe_form, report_of, stored_problems
from ofa_hf.tasks_ofa import Task


CAPTIONED = ("images", "captions")
SHOWN_ROWS = 5
SHOWN_PROBLEMS = 3  # of each kind


@dataclass
class DataCheck:
    """The result of a check.

    Args:
        rows: what would be trained on; None if there is nothing.
        odd: kind → number of rows that would be trained on but look wrong.
        characters: characters that the vocabulary lacks, with their counts.
        examples: kind → examples, as lines for people.
        why_empty: why there is nothing to train on.
    """

    report: DataReport
    rows: Dataset | None = None
    odd: Mapping[str, int] = field(default_factory=dict)
    characters: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    faulty_ids: Mapping[str, list[str]] = field(default_factory=dict)
    why_empty: str = ""

    def first_rows(self, count: int = SHOWN_ROWS) -> list[dict[str, Any]]:
        """Ids and captions of the first rows."""
        rows = islice(texts_of(self.rows), count) if self.rows is not None else ()
        return [{"image_id": image_id, "captions": list(captions)} for image_id, captions in rows]

    def as_dict(self) -> dict[str, Any]:
        """The check, ready for JSON."""
        form = {"encoding": "utf-8", "separator": None, "columns": {}, **self.report.assumed}
        return {
            "images": self.report.rows,
            "captions": self.report.targets,
            "problems": {**self.report.problems, **self.odd},
            "assumed": form,
            "examples": self.first_rows(),
            "repaired": dict(self.report.repaired),
            "left_out": dict(self.report.left_out),
            "unknown_characters": dict(self.characters),
        }

    def text(self) -> str:
        """The check for people."""
        report = self.report
        what = ("rows", "targets") if self.rows is not None and "image" not in self.rows.column_names else CAPTIONED
        lines = [f"{report.rows:,} {what[0]} with {report.targets:,} {what[1]} would be trained on."]
        if report.assumed:
            lines.append(f"Read as {describe_form(report.assumed)}.")
        if report.repaired:
            lines.append(f"Names of images repaired: {counted(report.repaired)}.")
        if report.left_out:
            lines.append(f"Left out of the folder: {counted(report.left_out)}.")
        lines += self._listed("Skipped", report.problems) + self._listed("Trained on, but odd", self.odd)
        if self.characters:
            shown = list(self.characters.items())
            more = f" and {len(shown) - 20:,} more" if len(shown) > 20 else ""
            unknown = ", ".join(f"{char} (U+{ord(char):04X}) {count:,}" for char, count in shown[:20])
            lines.append(f"Characters that the vocabulary lacks: {unknown}{more}.")
        if examples := self.first_rows():
            lines.append("Examples:")
            texts = ((row["image_id"], " | ".join(row["captions"][:3])) for row in examples)
            lines += [f"  {name}: {' '.join(text.split())}" for name, text in texts]
        return "\n".join(lines)

    def _listed(self, title: str, kinds: Mapping[str, int]) -> list[str]:
        if not kinds:
            return []
        lines = [f"{title}:"]
        for kind, count in sorted(kinds.items(), key=lambda item: -item[1]):
            lines.append(f"  {count:,} × {kind}")
            lines += [f"      {' '.join(example.split())[:200]}" for example in self.examples.get(kind, ())]
        return lines


def check_data(
    captions: str | Path,
    images: str | Path | None,
    task: Task,
    *,
    form: TableForm | None = None,
    test: tuple[str | Path, str | Path | None] | None = None,
    unknown: Callable[[Iterable[str]], set[str]] | None = None,
    num_proc: int = 1,
) -> DataCheck:
    """Read data as `finetune` would, and look at each caption and image.

    Args:
        captions, images, form: as for `load_source`.
        test: captions and images of the set to evaluate on; images that are in both are reported.
        unknown: see `check_texts`.

    Raises:
        UserError: a file cannot be read at all.
    """
    form, task = form or TableForm(), as_read(task)
    options = {"fields": task.fields, "needs_images": task.needs_image, "form": form, "targets": TargetForm.of(task)}
    if images is None and task.needs_image and not has_its_images(captions, form):
        raise UserError(
            f"The images are missing: the task {task.name} needs them. Pass the folder of the images that {captions} "
            "names, or MUGE's image file."
        )
    try:
        rows = load_source(captions, images, **options, num_proc=num_proc)
    except NoUsableRow as error:
        return DataCheck(error.report, examples=problem_examples(error.problems), why_empty=str(error))
    report = report_of(rows)
    texts = check_texts(texts_of(rows), vocabulary_of(task, unknown), are_sentences(task))
    odd, examples = dict(texts.counts), {k: [f"{i}: {text}" for i, text in v] for k, v in texts.examples.items()}
    faulty = {kind: [i for i, _ in found] for kind, found in texts.examples.items()}
    if task.needs_image:
        seen = check_images(rows, load_source(*test, **options, num_proc=num_proc) if test else None)
        odd |= seen.counts
        examples |= {kind: [f"{i}: {text}" for i, text in found] for kind, found in seen.examples.items()}
        faulty |= {kind: [i for i, _ in found] for kind, found in seen.examples.items()}
    examples |= problem_examples(stored_problems(report.report_file))
    return DataCheck(report, rows, odd, dict(texts.characters.most_common()), examples, faulty)


def problem_examples(problems: Iterable[Problem]) -> dict[str, list[str]]:
    """The first problems of each kind, as lines."""
    examples: dict[str, list[str]] = {}
    for problem in problems:
        if len(shown := examples.setdefault(problem.kind, [])) < SHOWN_PROBLEMS:
            shown.append(str(replace(problem, file=Path(problem.file).name)))
    return examples
