"""Let a model draw texts, and score its images by how well a CLIP says that they fit."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from ofa_hf.data.answers import AnswerRule, TargetForm, targets_in
from ofa_hf.data.sources import Files, is_original, load_task_files
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import EvaluationResult
from ofa_hf.evaluation.metrics import METRICS
from ofa_hf.models import load_processor
from ofa_hf.prediction.loop import find_task
from ofa_hf.prediction.questions import problem_of
from ofa_hf.prediction.text_to_image import TEXT_COLUMNS, DrawRequest, draw_files, read_record
from ofa_hf.tables.problems import Problem
from ofa_hf.tables.table_files import open_table
from ofa_hf.tasks_ofa import Task


CLIP = "clip"  # the metric


def evaluate_drawings(
    model: str,
    files: Files,
    clip: str,
    *,
    task: str | None = None,
    drawn: str | Path | None = None,
    num_images: int = 1,
    seed: int = 42,
    limit: int | None = None,
    device: str | None = None,
    run: Mapping[str, object] | None = None,
) -> EvaluationResult:
    """Draw every text of a table once, and score the best image of each by its cosine with the text.

    Args:
        model, clip: folders or Hub ids.
        files: a table with a column of texts, or one of the original's files. Images are not read.
        drawn: folder of the images, in which an interrupted evaluation is continued; by default they are not kept.
        num_images: of each text, of which the best counts.
        limit: draw only the first texts, up to this number.
        run: what was run, for the record.

    Raises:
        UserError: there are no texts, or model or CLIP cannot be loaded; the model does not draw.
    """
    processor = load_processor(model)
    chosen = find_task(processor, task)
    if chosen.answer != "image":
        raise UserError(f"--clip scores drawn images, but the task {chosen.name} draws none. Leave it out.")
    named = list(islice(dict.fromkeys(map(str.strip, texts_of(files, chosen, processor.language))), limit))
    texts = [text for text in named if not problem_of(chosen.fields[0], text)]
    with nullcontext(drawn) if drawn else tempfile.TemporaryDirectory() as folder:
        options = {"num_images": num_images, "seed": seed, "task": chosen.name, "clip": clip, "device": device}
        request = DrawRequest(texts, model, str(folder), **options, is_literal=True)
        skipped = len(named) - len(texts) + (draw_files(request) if texts else 0)
        found = {line["text"]: line["clip_score"] for line in read_record(Path(folder))}
        cosines = {text: found[text] for text in texts if text in found}
    if not cosines:
        raise UserError(f"{files.captions} has no text that can be drawn. Pass a table with a column of texts.")
    references = {text: [text] for text in cosines}
    facts = {"task": chosen.name, "clip": clip, "num_images": num_images, "seed": seed, "texts_skipped": skipped}
    scores = METRICS[CLIP].score(cosines, references)
    return EvaluationResult(scores, cosines, references, METRICS[CLIP], {**(run or {}), **facts})


def texts_of(files: Files, task: Task, language: str) -> Iterator[str]:
    """The texts of files.

    Raises:
        UserError: a file cannot be read, or has no column of texts.
    """
    if is_original(files, task):
        rows = load_task_files(files, task, language, TargetForm(AnswerRule(task.answer)), check_images=False)
        yield from rows[task.fields[0]]
        return
    table = open_table(files.captions, **files.form.reading())
    names = [files.form.caption_column] if files.form.caption_column else [*task.fields, *TEXT_COLUMNS]
    column = next((name for name in names if name in table.columns), None)
    if column is None:
        raise UserError(
            f"{files.captions} has no column {' or '.join(dict.fromkeys(names))}; it has {', '.join(table.columns)}. "
            f"Name the one with the texts: --caption-column."
        )
    for _, row in table:
        if not isinstance(row, Problem):
            yield from filter(str.strip, targets_in(row.get(column)) or ())
