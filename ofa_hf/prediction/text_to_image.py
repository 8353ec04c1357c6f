"""Draw texts into a folder: an image per file, a sheet per text, and a record by which a run is continued."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.utils import tqdm
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.files import write_bytes, write_image
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE, VQGAN_FOLDER, check_image_decoder, load_image_decoder
from ofa_hf.models import load_model, read_tasks
from ofa_hf.pipeline_ofa import IMAGES_PER_BATCH, OFATextToImagePipeline, check_description
from ofa_hf.prediction.clip import ClipScorer
from ofa_hf.tables.problems import Problem
from ofa_hf.tables.table_files import open_table
from ofa_hf.tasks_ofa import Task


RECORD = "images.jsonl"
TEXT_COLUMNS = ("text", "caption", "description", "prompt")
GAP = 8  # pixels between the images of a sheet
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class DrawRequest:
    """What to draw.

    Args:
        texts: texts; or one table of them, by its path.
        model: folder or Hub id.
        output: folder of the images; a run that was interrupted there is continued.
        num_images: per text.
        clip: folder or Hub id of a CLIP that ranks the images of a text; by default the model's own score does.
        column: of a table; by default the first of `TEXT_COLUMNS` that it has.
        options: of the pipeline, such as `num_beams`.
    """

    texts: Sequence[str]
    model: str
    output: str
    num_images: int = 4
    seed: int = 42
    task: str | None = None
    clip: str | None = None
    column: str | None = None
    device: str | None = None
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


def draw_files(request: DrawRequest) -> int:
    """Draw every text that can be drawn; returns how many could not.

    Raises:
        UserError: nothing to draw, no such model or one that does not draw, or an output of another run.
    """
    rows = find_texts(request)
    task = drawing_task(request)
    folder = DrawnFolder(Path(request.output), request)
    failed, wanted = 0, []
    for number, text in rows:
        if problem := problem_of(text):
            failed += 1
            say(f"text {number} is skipped: {problem}")
        elif not folder.has(number, text):
            wanted.append((number, text))
    done = len(rows) - failed - len(wanted)
    if done:
        say(f"{done:,} of {len(rows):,} texts are drawn already in {folder.path}.")
    return failed + (draw_all(request, task, folder, wanted) if wanted else 0)


def draw_all(request: DrawRequest, task: Task, folder: "DrawnFolder", wanted: Sequence[tuple[int, str]]) -> int:
    """Load the model and draw; returns how many texts CLIP cannot read."""
    decoder = load_decoder(request.model)
    scorer = ClipScorer(request.clip, request.device) if request.clip else None
    loaded = load_model(request.model, device=request.device, dtype=request.dtype)
    pipe = OFATextToImagePipeline(model=loaded.model, processor=loaded.processor, device=loaded.model.device)
    try:
        check_image_decoder(decoder, pipe.processor.codes()[1])
    except ValueError as error:
        raise UserError(str(error)) from error
    options = {"num_images": request.num_images, "seed": request.seed, "task": task.name, **request.options}
    failed = 0
    with code_bar(request, pipe, task, len(wanted)) as bar:
        if (options.get("num_beams") or 1) == 1:
            options["streamer"] = CodeStreamer(bar)
        for number, text in wanted:
            try:
                images = pipe(text, image_decoder=decoder, **options)
                folder.add(number, text, ranked(images, text, scorer))
            except ValueError as error:
                failed += 1
                say(f"text {number} is skipped: {error}")
            if "streamer" not in options:
                bar.update()
    return failed


def load_decoder(model: str) -> Any:
    """The VQGAN of a model that draws.

    Raises:
        UserError: it has none, or diffusers is missing.
    """
    try:
        return load_image_decoder(model)
    except (ImportError, ValueError) as error:
        advice = " It comes with `pip install 'ofa-hf[draw]'`." if isinstance(error, ImportError) else ""
        raise UserError(f"{error}{advice}") from error


def ranked(images: list[dict[str, Any]], text: str, scorer: ClipScorer | None) -> list[dict[str, Any]]:
    """Images best first: by the model's score as they come, or by CLIP's."""
    if scorer is None:
        return images
    cosines = scorer(text, [one["image"] for one in images])
    images = [{**one, "clip_score": cosine} for one, cosine in zip(images, cosines, strict=True)]
    return sorted(images, key=lambda one: -one["clip_score"])


# -------------------------------------------------------------------------------------------------- before work


def find_texts(request: DrawRequest) -> list[tuple[int, Any]]:
    """Numbers from 1 and texts; a row of a table that cannot be read is a `Problem`.

    Raises:
        UserError: there are none, or a table has no column of texts.
    """
    if request.num_images < 1 or not 0 <= request.seed <= MAX_SEED:
        raise UserError(
            f"num_images={request.num_images}, seed={request.seed}: at least one image is drawn, and a seed is a "
            f"number from 0 to {MAX_SEED}."
        )
    if len(request.texts) == 1 and os.path.exists(request.texts[0]):
        rows = list(enumerate(texts_of_table(request.texts[0], request.column), 1))
    else:
        rows = list(enumerate(request.texts, 1))
    if not rows:
        raise UserError(f"{', '.join(request.texts) or 'The command'} has no text to draw. Give one, or a table.")
    return rows


def texts_of_table(path: str, column: str | None) -> Iterator[Any]:
    table = open_table(path)
    column = column or next((name for name in TEXT_COLUMNS if name in table.columns), None)
    if column not in table.columns:
        wanted = f"no column {column!r}" if column else f"none of the columns {', '.join(TEXT_COLUMNS)}"
        raise UserError(f"{path} has {wanted}. It has {', '.join(table.columns)}. Name one of them with --column.")
    for _, row in table:
        yield row if isinstance(row, Problem) else str(row.get(column) or "")


def problem_of(text: Any) -> str:
    """Why a text cannot be drawn; empty if it can."""
    if isinstance(text, Problem):
        return str(text)
    try:
        check_description(text)
    except ValueError as error:
        return str(error)
    return ""


def drawing_task(request: DrawRequest) -> Task:
    """The task of the model that draws.

    Raises:
        UserError: it has none.
    """
    tasks, _, _ = read_tasks(request.model)
    drawing = [task for name, task in tasks.items() if task.answer == "image" and request.task in (None, name)]
    if not drawing:
        raise UserError(
            f"The model {request.model} does not draw: its tasks are {', '.join(tasks)}. Use one that was converted "
            f"from image_gen_base_best or image_gen_large_best."
        )
    if os.path.isdir(request.model) and not os.path.isdir(os.path.join(request.model, VQGAN_FOLDER)):
        raise UserError(f"{request.model} has no folder {VQGAN_FOLDER}. Convert the checkpoint with --vqgan.")
    return drawing[0]


# ------------------------------------------------------------------------------------------------------- output


class DrawnFolder:
    """A folder of drawn images, with a line per text in `images.jsonl` once all its images are there.

    Raises:
        UserError: the folder holds images of another run, or is a file.
    """

    def __init__(self, path: Path, request: DrawRequest):
        self.path, self.record = path, path / RECORD
        self.settings = {"num_images": request.num_images, "seed": request.seed, "clip": request.clip}
        self.settings |= {"options": dict(request.options)}
        if path.is_file():
            raise UserError(f"{path} is a file. Give a folder for the images.")
        path.mkdir(parents=True, exist_ok=True)
        self.drawn = {line["number"]: line for line in self._lines()}

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The texts that are drawn; a last line that was cut off by a crash is dropped."""
        if not self.record.exists():
            return
        text = self.record.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            write_bytes(self.record, complete.encode())
        for line in complete.splitlines():
            try:
                values = json.loads(line)
                if {"number", "text", "images"} <= values.keys():
                    yield values
                    continue
            except (ValueError, AttributeError):
                pass
            raise UserError(f"{self.record} was not written by ofa-hf draw. Give another folder for the images.")

    def has(self, number: int, text: str) -> bool:
        """Whether a text is drawn.

        Raises:
            UserError: another text has this number, or it was drawn with other settings.
        """
        line = self.drawn.get(number)
        if line is None:
            return False
        if line["text"] != text or {name: line.get(name) for name in self.settings} != self.settings:
            raise UserError(
                f"{self.record} is of another run: text {number} was {line['text'][:60]!r}, drawn with "
                f"num_images={line.get('num_images')}, seed={line.get('seed')}. Give another folder, or the same "
                f"texts and settings to continue that run."
            )
        return all((self.path / one["file"]).is_file() for one in line["images"])

    def add(self, number: int, text: str, images: Sequence[Mapping[str, Any]]) -> None:
        """Write the images of a text, their sheet, and then the line that says so; print the line."""
        entries = []
        for rank, one in enumerate(images, 1):
            name = f"{number:04d}-{rank}.png"
            write_image(self.path / name, one["image"], "PNG")
            scores = {key: round(one[key], 6) for key in ("score", "clip_score") if key in one}
            entries.append({"file": name, **scores})
        if len(images) > 1:
            write_image(self.path / f"{number:04d}-sheet.png", sheet([one["image"] for one in images]), "PNG")
        line = {"number": number, "text": text, **self.settings, "images": entries}
        with open(self.record, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size side by side, in about as many rows as columns, the first in the upper left corner."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, image in enumerate(images):
        whole.paste(image, (place % columns * (width + GAP), place // columns * (height + GAP)))
    return whole


# ----------------------------------------------------------------------------------------------------- progress


class CodeStreamer:
    """Moves a bar with each code; what `generate` takes for a streamer."""

    def __init__(self, bar: Any):
        self.bar = bar

    def put(self, value: Any) -> None:
        self.bar.update()

    def end(self) -> None:
        pass


def code_bar(request: DrawRequest, pipe: OFATextToImagePipeline, task: Task, texts: int) -> Any:
    """A bar on stderr: of the steps of all texts, or with a beam search, which tells nothing, of the texts."""
    if (request.options.get("num_beams") or 1) > 1:
        return tqdm(total=texts, unit="text", desc="drawing")
    width, height = pipe.processor.model_size(task)
    steps = (width // PIXELS_PER_CODE) * (height // PIXELS_PER_CODE) + 2  # the start token and the end
    return tqdm(total=texts * steps * math.ceil(request.num_images / IMAGES_PER_BATCH), unit="step", desc="drawing")


def say(text: str) -> None:
    tqdm.write(f"ofa-hf draw: {text}", file=sys.stderr)
