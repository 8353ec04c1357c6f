"""Answer images or texts with one or several models; used by `ofa-hf caption` and the commands of other tasks."""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ofa_hf.boxes_ofa import SIDES
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import package_versions
from ofa_hf.models import LoadedModel, load_model, load_processor, read_tasks
from ofa_hf.prediction.choices import read_choices, usable_choices
from ofa_hf.prediction.loop import Prediction, check_beams, predict, refuse_drawing
from ofa_hf.prediction.output_files import TextFiles, check_output, record_of, refuse_changed_sheet, write_sheet
from ofa_hf.prediction.outputs import AnswerFile, AnswerPrinter, Answers, Format, Name
from ofa_hf.prediction.processes import Processes, SharedAnswerFile, open_answer_file
from ofa_hf.prediction.questions import Inputs, Rows, find_rows, notes_of
from ofa_hf.tasks_ofa import Task


Output = AnswerFile | AnswerPrinter | SharedAnswerFile | TextFiles
DEFAULT_ANSWER = "answer"


class Report(Protocol):
    """An output made from all answers at the end, such as `ofa_hf.pages.comparison.ComparisonReport`."""

    def owns(self, file: str) -> bool: ...

    def check(self, rows: Rows, task: Task) -> None: ...

    def write(
        self,
        names: Sequence[Name],
        answers: Mapping[str, Mapping[Name, list[Any]]],
        run: Mapping[str, object],
        on_row: Callable[[], object],
        columns: tuple[str, ...],
    ) -> None: ...


@dataclass(frozen=True)
class Request:
    """What to answer, with which models, and where to write the answers.

    Args:
        command: name of the command in messages, such as "caption".
        answer: what an answer is called in the output, such as "caption"; boxes are always called "box".
        inputs: the inputs of the questions.
        models: folders or Hub ids, run in turn.
        task: a task of the checkpoints; None is their default task.
        choices: lists of answers and files with one per line, instead of the task's own answers.
        choose_with: the option for them, for messages.
        output: `.jsonl` or `.csv` file, resumed if it exists, or `.xlsx`, written at the end from a `.jsonl` next to
            it, which is resumed. Without it and without reports, answers are printed.
        beside: write the answers to each image into a `.txt` file next to it; images that have one are skipped.
        num_answers: per row.
        as_probabilities: scores are probabilities; otherwise log-probabilities.
        threshold: boxes with a lower score are left out.
        options: keywords of `predict`, such as `prompt`, `batch_size` and `num_beams`; None is the model's default.
    """

    command: str
    answer: str
    inputs: Inputs
    models: Sequence[str]
    task: str | None = None
    choices: Sequence[str] = ()
    choose_with: str = ""
    output: str | None = None
    beside: bool = False
    as_json: bool = False
    num_answers: int = 1
    as_probabilities: bool = True
    threshold: float = 0.0
    device: str | None = None
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        tqdm.write(f"ofa-hf {self.command}: {text}", file=sys.stderr)

    def format(self, task: Task, rows_columns: tuple[str, ...], model: str | None = None) -> Format:
        """The output format of answers to a task."""
        has_boxes = task.answer == "boxes"
        answer = "box" if has_boxes else self.answer
        answer = DEFAULT_ANSWER if answer in rows_columns else answer
        return Format(answer, self.num_answers, model, rows_columns, has_boxes)

    def written(self, prediction: Prediction) -> Answers:
        """The answers of a prediction in the output format."""
        answers = prediction.answers
        if "score" in answers[0] and self.as_probabilities:
            answers = [{**answer, "score": math.exp(answer["score"])} for answer in answers]
        if "box" in answers[0]:
            size = prediction.image_size
            answers = [{**answer, "box": self._box_if_there(answer, size), "size": size} for answer in answers]
        return answers

    def _box_if_there(self, answer: dict[str, Any], size: tuple[int, int]) -> dict[str, float] | None:
        """The box, clipped to its image and with sorted corners; None below the threshold."""
        if answer["box"] is None or answer.get("score", math.inf) < self.threshold:
            return None
        xs, ys = (sorted(answer["box"][side] for side in sides) for sides in (SIDES[::2], SIDES[1::2]))
        (xmin, xmax), (ymin, ymax) = (
            [min(max(0.0, value), limit) for value in values] for values, limit in zip((xs, ys), size)
        )
        return dict(zip(SIDES, (xmin, ymin, xmax, ymax)))


def answer_files(request: Request, reports: Sequence[Report] = ()) -> int:
    """Answer all rows that can be answered; returns the number of the others.

    Raises:
        UserError: there is nothing to answer, a model does not exist or lacks the task, or an output cannot be written
            or resumed.
    """
    processes = Processes()
    _check(request, reports, processes)
    models = _distinct(request.models)
    task, language = the_task(request.command, models, request.task)
    refuse_without_choices(request, task)
    choices = usable_by_model(request, models) if processes.is_first else {}
    rows = find_rows(request.inputs, task, language, lambda file: any(report.owns(file) for report in reports))
    if request.beside and (rows.columns != ("file",) or task.answer == "boxes"):
        raise UserError(f"--txt writes texts about images, but the task {task.name} asks for more. Use --output FILE.")
    for report in reports:
        report.check(rows, task)
    with processes, tempfile.TemporaryDirectory(prefix="ofa_hf_") as scratch:
        rows.names, choices = processes.agree((rows.names, choices))
        job = Job(request, task, rows, choices, len(models) > 1, bool(reports), processes, scratch)
        if processes.is_first:
            skipped = [f"skipped: {problem}" for problem in rows.problems]
            for note in [*rows.notes, *skipped, *notes_of(rows.counts, language)]:
                request.say(note)
        answers = {model: job.run(model) for model in models}
    for report in reports:
        with job.progress(len(rows.names)) as bar:
            report.write(rows.names, answers, _facts(request, task, models), bar.update, rows.columns)
    return len(job.failed) + len(rows.problems)


def the_task(command: str, models: Sequence[str], name: str | None) -> tuple[Task, str]:
    """The task for all of these models, and its language.

    Raises:
        UserError: a model lacks the task, or its prompt needs other texts than that of another model.
    """
    found = []
    for model in models:
        tasks, default, language = read_tasks(model)
        wanted = default if name is None else name
        if wanted not in tasks:
            if default in tasks:
                refuse_drawing(tasks[default])
            raise UserError(
                f"The model {model} has no task {wanted!r}, which ofa-hf {command} needs. Its tasks: "
                f"{', '.join(tasks)}. Name one of them with --task, or use a model trained for {wanted}."
            )
        refuse_drawing(tasks[wanted])
        found.append((tasks[wanted], language))
    if len({(task.fields, task.needs_image, task.answer == "boxes") for task, _ in found}) > 1:
        raise UserError(
            f"The models {', '.join(models)} mean different things by the task {name or 'of their own'!r}: they ask "
            f"about different texts. Run them one by one."
        )
    return found[0]


def refuse_without_choices(request: Request, task: Task) -> None:
    """Raises `UserError` if the task chooses from a list, and neither it nor the command has one."""
    if task.answer == "choice" and not (task.choices or request.choices):
        next_step = (
            f"Pass {request.choose_with} FILE_OR_LIST" if request.choose_with else "Ask it with ofa-hf classify"
        )
        raise UserError(f"The task {task.name} chooses from a list of answers, but none was given. {next_step}.")


def usable_by_model(request: Request, models: Sequence[str]) -> dict[str, list[str]]:
    """The answers of the request's lists that each model can choose; the others are reported once."""
    if not request.choices:
        return {}
    given = read_choices(request.choices)
    choices = {model: usable_choices(load_processor(model), given) for model in models}
    for left_out in dict.fromkeys(chain.from_iterable(each.left_out for each in choices.values())):
        by = [model for model, each in choices.items() if left_out in each.left_out]
        whose = f" by {', '.join(by)}" if len(by) < len(models) else ""
        request.say(f"not used as answers{whose}: {left_out}.")
    return {model: each.texts for model, each in choices.items()}


def with_usable_choices(request: Request, model: str) -> Request:
    """The request of one model with the answers that it can choose."""
    return replace(request, choices=usable_by_model(request, [model]).get(model, ()))


def _check(request: Request, reports: Sequence[Report], processes: Processes) -> None:
    if not request.choices:  # only generation needs beams, not a list of answers
        check_beams(request.num_answers, request.options.get("num_beams"))
    if request.beside and (len(request.models) > 1 or request.output):
        raise UserError("--txt writes one text next to each image: use it with one --model and without --output.")
    if processes.count > 1 and request.output and record_of(request.output) != Path(request.output):
        raise UserError(
            f"{processes.count} processes cannot write the spreadsheet {request.output}. Write a .csv or .jsonl."
        )
    if processes.count > 1 and reports:
        raise UserError(
            f"{processes.count} processes write one output, but only one process can make pages and drawings of it. "
            f"Run the command without them first, then with them and without torchrun."
        )
    check_output(request.output)
    plural = Format(request.answer, 1).plural
    if processes.count > 1 and not (request.output or request.beside):
        raise UserError(
            f"{processes.count} processes need a file to write to. Add --output {plural}.jsonl, or run the command "
            f"without torchrun."
        )


def _distinct(models: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(os.path.normpath(model) if os.path.isdir(model) else model for model in models))


def _facts(request: Request, task: Task, models: Sequence[str]) -> dict[str, object]:
    """Settings of the run, for the report."""
    default = "each model's own"
    names = {"prompt": "prompt", "num_beams": "beams", "max_length": "max. tokens"}
    asked = {title: request.options.get(name) or default for name, title in names.items()}
    plural = request.format(task, ()).plural
    return {"models": list(models), **asked, f"{plural} per row": request.num_answers, **package_versions()}


@dataclass
class Job:
    """Answers the rows of a request with each model; rows that cannot be answered are reported once."""

    request: Request
    task: Task
    rows: Rows
    choices: Mapping[str, Sequence[str]]  # answers for each model; None if the task has its own or answers freely
    has_several_models: bool
    has_reports: bool
    processes: Processes
    scratch: str
    failed: set[Name] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    @property
    def has_several_rows(self) -> bool:
        return len(self.rows.names) > 1 or any(map(os.path.isdir, self.request.inputs.paths))

    @property
    def is_printed(self) -> bool:
        return not (self.request.output or self.request.beside or self.has_reports)

    def run(self, model: str) -> dict[Name, list[Any]]:
        """Answer the remaining rows; returns all answers of the model by key if a report needs them."""
        mine = self.processes.share(self.rows.names)
        format = self.request.format(self.task, self.rows.columns, model if self.has_several_models else None)
        with self._open_output(format) as output:
            todo = [name for name in mine if name not in self.failed and format.key(name) not in output.done]
            num_before = len(mine) - len(todo) - len(self.failed)
            num_answered = self._answer(model, todo, output) if todo else 0
            self._summarize(model, num_answered, num_before)
            if not self.has_reports:
                return self._finish(output, format)
            if isinstance(output, TextFiles):
                return output.answers_to(self.rows.names)
            found = output.answers()
            self._finish(output, format)
            return {name: found[key] for name in self.rows.names if (key := format.key(name)) in found}

    def _finish(self, output: Output, format: Format) -> dict:
        """Write the spreadsheet from the record, after merging those of several processes."""
        path = self.request.output
        if path and record_of(path) != Path(path) and self.processes.count == 1:
            write_sheet(record_of(path), Path(path), format)
        return {}

    def _open_output(self, format: Format) -> AbstractContextManager[Output]:
        if self.is_printed:
            with_names = self.has_several_rows and "file" in self.rows.columns
            return AnswerPrinter(format, self.request.as_json, with_names)
        if self.request.beside:
            return TextFiles(self.rows.names)
        path = record_of(self.request.output or os.path.join(self.scratch, "answers.jsonl"))
        if self.request.output and path != Path(self.request.output):
            refuse_changed_sheet(path, Path(self.request.output), format)
        return open_answer_file(path, format, self.processes, self.rows.names)

    def _answer(self, name: str, names: Sequence[Name], output: Output) -> int:
        """Load a model and write its answers with a progress bar; returns the number of answered rows."""
        request, num_answered = self.request, 0
        loaded = load_model(name, device=self.processes.device(request.device), dtype=request.dtype)
        with ExitStack() as stack:
            bar = stack.enter_context(self.progress(len(names)))

            def skip(row: Name, error: Exception) -> None:
                self.failed.add(row)
                if (reason := str(error)) not in self.said:  # an image's error is reported once, for all its rows
                    self.said.add(reason)
                    bar.write(f"ofa-hf {request.command}: skipped: {reason}", file=sys.stderr)

            for prediction in self.predictions(name, loaded, names, skip):
                if prediction.answers:
                    output.write(prediction.id, request.written(prediction))
                    num_answered += 1
                bar.update()
        return num_answered

    def predictions(self, model: str, loaded: LoadedModel, names: Sequence[Name], skip: Callable):
        request = self.request
        options = {key: value for key, value in request.options.items() if value is not None}
        needs_scores = request.as_json or request.output or self.has_reports or request.threshold
        options |= {"num_answers": request.num_answers, "return_scores": bool(needs_scores)}
        options |= {"choices": self.choices[model]} if model in self.choices else {}
        return predict(*loaded, map(self.rows.row, names), task=self.task.name, on_failure=skip, **options)

    def progress(self, num_rows: int) -> tqdm:
        """A bar on stderr; none for a single row, in later processes, or if answers are printed on the screen."""
        is_hidden = num_rows < 2 or not self.processes.is_first or (self.is_printed and sys.stdout.isatty())
        interval = 0.2 if sys.stderr.isatty() else 30
        return tqdm(total=num_rows, unit=self._noun, file=sys.stderr, disable=is_hidden, mininterval=interval)

    @property
    def _noun(self) -> str:
        return "image" if self.rows.columns == ("file",) else "row"

    def _summarize(self, model: str, *counts: int) -> None:
        num_answered, num_before, num_failed = self.processes.total(*counts, len(self.failed))
        if self.processes.is_first and (self.has_several_rows or not self.is_printed):
            name = f"{model}: " if self.has_several_models else ""
            before = f", {num_before} done before" if num_before else ""
            num_failed += len(self.rows.problems)
            num_rows = len(self.rows.names) + len(self.rows.problems)
            failed = "not readable" if self._noun == "image" else "not answered"
            self.request.say(f"{name}{num_answered} of {num_rows} {self._noun}s done, {num_failed} {failed}{before}.")
