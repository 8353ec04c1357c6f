"""Answer image files with one or several models: what `ofa-hf caption` and the commands of other tasks run."""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import package_versions
from ofa_hf.models import check_model, load_model
from ofa_hf.prediction.inputs import ImageFile, find_images
from ofa_hf.prediction.loop import check_beams, predict
from ofa_hf.prediction.outputs import AnswerFile, AnswerPrinter, Format
from ofa_hf.prediction.processes import Processes, SharedAnswerFile, open_answer_file


Output = AnswerFile | AnswerPrinter | SharedAnswerFile


class Report(Protocol):
    """A page that shows images and answers; `ofa_hf.pages.comparison.ComparisonReport` is one."""

    def owns(self, file: str) -> bool: ...

    def write(
        self,
        files: Sequence[str],
        answers: Mapping[str, Mapping[str, list[str]]],
        run: Mapping[str, object],
        on_image: Callable[[], object],
    ) -> None: ...


@dataclass(frozen=True)
class Request:
    """What to answer, with which models, and where the answers go.

    Args:
        command: name of the command in messages, such as "caption".
        answer: what an answer is called in the output, such as "caption".
        inputs: image files, and folders of them.
        models: folders or Hub ids, run one after another.
        output: `.jsonl` or `.csv` file, resumed if it exists; without it and without a report, answers are printed.
        num_answers: per image.
        options: of `predict`, such as `prompt`, `batch_size` and `num_beams`; those that are None are the model's.
    """

    command: str
    answer: str
    inputs: Sequence[str]
    models: Sequence[str]
    output: str | None = None
    as_json: bool = False
    num_answers: int = 1
    device: str | None = None
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


def answer_files(request: Request, report: Report | None = None) -> int:
    """Answer every image that can be read; returns how many could not.

    Raises:
        UserError: nothing to answer, no such model, or an output that cannot be written or resumed.
    """
    processes = Processes()
    _check(request, report, processes)
    files = find_images(request.inputs, report.owns) if report else find_images(request.inputs)
    models = _distinct(request.models)
    for model in models[1:]:  # a mistyped name is reported now rather than after the first model's hours
        check_model(model)
    with processes, tempfile.TemporaryDirectory(prefix="ofa_hf_") as scratch:
        files = processes.agree(files)
        job = _Job(request, files, len(models) > 1, report is not None, processes, scratch)
        answers = {model: job.run(model) for model in models}
    if report:
        with job.progress(len(files)) as bar:
            report.write(files, answers, _facts(request, models), bar.update)
    return len(job.unreadable)


def _check(request: Request, report: Report | None, processes: Processes) -> None:
    check_beams(request.num_answers, request.options.get("num_beams"))
    if processes.count > 1 and report:
        raise UserError(
            f"{processes.count} processes write one output, but only one process can write --report. Run the command "
            f"without --report first, then with it and without torchrun."
        )
    if processes.count > 1 and not request.output:
        raise UserError(
            f"{processes.count} processes need a file to write to. Add --output {request.answer}s.jsonl, or run the "
            f"command without torchrun."
        )


def _distinct(models: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(os.path.normpath(model) if os.path.isdir(model) else model for model in models))


def _facts(request: Request, models: Sequence[str]) -> dict[str, object]:
    """What was run, for the report."""
    default = "each model's own"
    names = {"prompt": "prompt", "num_beams": "beams", "max_length": "max. tokens"}
    asked = {title: request.options.get(name) or default for name, title in names.items()}
    return {
        "models": list(models),
        **asked,
        f"{request.answer}s per image": request.num_answers,
        **package_versions(),
    }


@dataclass
class _Job:
    """The files of a request, answered by one model after another; images that cannot be read are reported once."""

    request: Request
    files: Sequence[str]
    has_several_models: bool
    has_report: bool
    processes: Processes
    scratch: str
    unreadable: set[str] = field(default_factory=set)

    @property
    def has_several_files(self) -> bool:
        return len(self.files) > 1 or any(map(os.path.isdir, self.request.inputs))

    @property
    def is_printed(self) -> bool:
        return not (self.request.output or self.has_report)

    def run(self, model: str) -> dict[str, list[str]]:
        """Answer what is not done yet; returns all of the model's answers by absolute path if a report needs them."""
        mine = self.processes.share(self.files)
        with self._open_output(model) as output:
            todo = [file for file in mine if os.path.abspath(file) not in output.done and file not in self.unreadable]
            num_before = len(mine) - len(todo) - len(self.unreadable)
            num_answered = self._answer(model, todo, output) if todo else 0
            self._summarize(model, num_answered, num_before)
            return output.answers() if self.has_report else {}

    def _open_output(self, model: str) -> AbstractContextManager[Output]:
        request = self.request
        format = Format(request.answer, request.num_answers, model if self.has_several_models else None)
        if self.is_printed:
            return AnswerPrinter(format, request.as_json, self.has_several_files)
        path = request.output or os.path.join(self.scratch, "answers.jsonl")
        return open_answer_file(path, format, self.processes, self.files)

    def _answer(self, name: str, files: Sequence[str], output: Output) -> int:
        """Load a model and write its answers with a progress bar; returns how many files have one."""
        request, num_answered = self.request, 0
        loaded = load_model(name, device=self.processes.device(request.device), dtype=request.dtype)
        options = {key: value for key, value in request.options.items() if value is not None}
        options |= {"num_answers": request.num_answers, "return_scores": bool(request.as_json or request.output)}
        rows = ({"id": file, "image": ImageFile(file)} for file in files)
        with self.progress(len(files)) as bar:

            def skip(file: str, error: Exception) -> None:
                self.unreadable.add(file)
                bar.write(f"ofa-hf {request.command}: skipped: {error}", file=sys.stderr)

            for prediction in predict(*loaded, rows, on_failure=skip, **options):
                if prediction.answers:
                    output.write(prediction.id, prediction.answers)
                    num_answered += 1
                bar.update()
        return num_answered

    def progress(self, num_files: int) -> tqdm:
        """A bar on stderr; none for one image, for all processes but the first, or where answers fill the screen."""
        is_hidden = num_files < 2 or not self.processes.is_first or (self.is_printed and sys.stdout.isatty())
        interval = 0.2 if sys.stderr.isatty() else 30
        return tqdm(total=num_files, unit="image", file=sys.stderr, disable=is_hidden, mininterval=interval)

    def _summarize(self, model: str, *counts: int) -> None:
        num_answered, num_before, num_unreadable = self.processes.total(*counts, len(self.unreadable))
        if self.processes.is_first and (self.has_several_files or not self.is_printed):
            name = f"{model}: " if self.has_several_models else ""
            before = f", {num_before} done before" if num_before else ""
            tqdm.write(
                f"ofa-hf {self.request.command}: {name}{num_answered} of {len(self.files)} images done, "
                f"{num_unreadable} not readable{before}.",
                file=sys.stderr,
            )
