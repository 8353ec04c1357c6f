"""Draw texts into a folder: an image per file, a sheet per text, and a record by which a run is continued."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from datasets.utils import tqdm
from PIL import Image

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.data.codes import load_vqgan
from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.files import file_digest, read_json, refuse_unwritable, write_image, write_json
from ofa_hf.image_processing_ofa import VQGAN_FOLDER, check_image_decoder
from ofa_hf.models import load_model, load_processor, read_tasks
from ofa_hf.pipeline_ofa import MAX_SEED, OFATextToImagePipeline, check_window, encode_description
from ofa_hf.prediction.clip import ClipScorer
from ofa_hf.prediction.outputs import SCORES, Format
from ofa_hf.prediction.processes import Processes, open_answer_file
from ofa_hf.prediction.questions import Inputs, Rows, find_rows, notes_of
from ofa_hf.processing_ofa import OFAProcessor
from ofa_hf.tasks_ofa import Task


RECORD = "images.jsonl"
TEXT_COLUMNS = ("text", "caption", "description", "prompt")  # common columns of tables
SETTINGS = "settings.json"  # settings of the run in a folder
# Files of a model that decide what it draws, and of a CLIP that decide how it ranks.
DECISIVE = ("*.safetensors", "pytorch_model*.bin", "*config.json", "tokenizer.json", "vocab.*", "merges.txt")
GAP = 8  # pixels between the images of a sheet

Key = tuple[str, str]  # number and text


@dataclass(frozen=True)
class DrawRequest:
    """What to draw.

    Args:
        texts: texts, files with one per line, `-` for such lines on stdin, and tables.
        model: folder or Hub id.
        output: folder of the images; a run that was interrupted there is continued.
        num_images: per text.
        clip: folder or Hub id of a CLIP that ranks the images of a text; by default the model's own score does.
        column: of tables; by default the usual ones.
        reading: encoding and separator of tables, see `open_table`.
        options: of the pipeline, such as `num_beams`.
        is_literal: `texts` are texts, also those that look like the name of a file.
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
    reading: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_literal: bool = False

    def settings(self) -> dict[str, Any]:
        """What decides which images come out. A folder is known by its files: it may be moved, but not changed."""
        models = {"model": identity_of(self.model), "clip": self.clip and identity_of(self.clip)}
        return {**models, "num_images": self.num_images, "seed": self.seed, "options": dict(self.options)}


def identity_of(model: str) -> str:
    """A Hub id, or a digest of a folder's weights, settings and vocabulary."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    parts = [part for part in (folder, folder / VQGAN_FOLDER) if part.is_dir()]
    files = sorted({file for part in parts for pattern in DECISIVE for file in part.glob(pattern)})
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n" for file in files]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def draw_files(request: DrawRequest) -> int:
    """Draw every text that can be drawn, in one process or in those of `torchrun`; returns how many could not.

    Raises:
        UserError: nothing to draw, no such model or one that does not draw, or an output of another run.
    """
    processes = Processes()
    check_settings(request)
    task, language = drawing_task(request)
    rows = find_rows(inputs_of(request, task), task, language)
    folder = Path(request.output)
    full_disk = explain_full_disk(folder, "What is drawn is kept. Free some space and run the command again.")
    with processes, full_disk:
        rows.names = processes.agree(rows.names)
        settings = processes.agree(request.settings() if processes.is_first else {})
        if processes.is_first:
            check_folder(folder, request, settings)
            skipped_rows = [f"skipped: {problem}" for problem in rows.problems]
            for note in [*rows.notes, *skipped_rows, *notes_of(rows.counts, language)]:
                say(note)
        processes.total()  # the first one found nothing wrong
        return len(rows.problems) + Job(request, task, processes, settings).run(rows)


def inputs_of(request: DrawRequest, task: Task) -> Inputs:
    if request.is_literal:
        return Inputs((), texts=dict.fromkeys(task.fields, request.texts))
    columns = {name: [request.column] if request.column else TEXT_COLUMNS for name in task.fields}
    return Inputs(request.texts, text_columns=columns, reading=request.reading)


@dataclass
class Job:
    """The texts of a request, each process taking its share.

    Args:
        settings: of the request, for the folder.
    """

    request: DrawRequest
    task: Task
    processes: Processes
    settings: dict[str, Any]
    failed: int = 0

    def run(self, rows: Rows) -> int:
        """Draw what is not drawn yet; returns how many texts could not be, in all processes."""
        keys = [(str(number), text) for number, text in enumerate(rows.names, 1)]
        mine = list(filter(self._can_be_drawn, self.processes.share(keys)))
        drawn = before = 0
        if self.processes.total(len(mine))[0]:
            drawn, before = self.processes.total(*self._draw_missing(mine, keys))
        (failed,) = self.processes.total(self.failed)
        if self.processes.is_first:
            already = f", {before:,} drawn before" if before else ""
            number, skipped = len(keys) + len(rows.problems), failed + len(rows.problems)
            say(f"{drawn:,} of {number:,} texts drawn, {skipped:,} not{already}.")
        return failed

    @cached_property
    def processor(self) -> OFAProcessor:
        return load_processor(self.request.model)

    def _can_be_drawn(self, key: Key) -> bool:
        try:
            encode_description(self.processor, key[1], self.task.name, notice_language=False)
        except ValueError as error:
            self._skip(key, error)
            return False
        return True

    def _skip(self, key: Key, error: Exception) -> None:
        self.failed += 1
        say(f"text {key[0]} is skipped: {error}")

    def _draw_missing(self, mine: Sequence[Key], keys: Sequence[Key]) -> tuple[int, int]:
        """Draw those of this process's texts that are not drawn; returns how many were, and how many had been.

        Args:
            keys: of all processes.
        """
        path, request = Path(self.request.output), self.request
        request = replace(request, device=self.processes.device(request.device))
        load = cache(partial(load_drawer, self.task, request, self.processor))
        if mine and not (path / RECORD).exists():
            load()  # models that are refused leave no record behind
        self.processes.total()  # nor does a process that had none to load
        format = Format("image", request.num_images, names=("number", "text"))
        with open_answer_file(path / RECORD, format, self.processes, keys) as output:
            folder = DrawnFolder(path, output, request)
            todo = [key for key in mine if not folder.has(key)]
            return self._draw(folder, todo, *load()) if todo else 0, len(mine) - len(todo)

    def _draw(
        self,
        folder: "DrawnFolder",
        todo: Sequence[Key],
        pipe: OFATextToImagePipeline,
        decoder: Any,
        scorer: ClipScorer | None,
    ) -> int:
        """Draw texts; returns how many could be."""
        request, before = self.request, self.failed
        write_json(folder.path / SETTINGS, self.settings)  # now that there will be images
        options = {"num_images": request.num_images, "seed": request.seed, "task": self.task.name, **request.options}
        options |= {"image_decoder": decoder, "notice_language": False}  # which was told for all texts together
        with code_bar(len(todo), is_hidden=not self.processes.is_first) as on_step:
            for key in todo:
                try:
                    if scorer is not None:
                        scorer.read(key[1])  # before minutes of drawing
                    folder.add(key, ranked(pipe(key[1], on_step=on_step, **options), key[1], scorer))
                except ValueError as error:
                    self._skip(key, error)
        return len(todo) - (self.failed - before)


def load_drawer(
    task: Task, request: DrawRequest, processor: OFAProcessor
) -> tuple[OFATextToImagePipeline, Any, ClipScorer | None]:
    """The pipeline, its VQGAN and the CLIP that ranks, the small ones first.

    Raises:
        UserError: one of them cannot be loaded, or they do not fit each other.
    """
    decoder = load_vqgan(request.model)
    try:
        check_image_decoder(decoder, processor.codes()[1])
        check_window(processor, task.name, OFAConfig.from_pretrained(request.model))
    except ValueError as error:
        raise UserError(str(error)) from error
    scorer = None if request.clip is None else ClipScorer(request.clip, request.device)
    loaded = load_model(request.model, device=request.device, dtype=request.dtype)
    pipe = OFATextToImagePipeline(model=loaded.model, processor=loaded.processor, device=loaded.model.device)
    return pipe, decoder, scorer


def ranked(images: list[dict[str, Any]], text: str, scorer: ClipScorer | None) -> list[dict[str, Any]]:
    """Images best first: by the model's score as they come, or by CLIP's."""
    if scorer is None:
        return images
    cosines = scorer(text, [one["image"] for one in images])
    images = [{**one, "clip_score": cosine} for one, cosine in zip(images, cosines, strict=True)]
    return sorted(images, key=lambda one: -one["clip_score"])


# -------------------------------------------------------------------------------------------------- before work


def check_settings(request: DrawRequest) -> None:
    """Raises `UserError` for numbers with which nothing can be drawn."""
    if request.num_images < 1:
        raise UserError(f"--num-images {request.num_images}: draw at least one image of each text.")
    if not 0 <= request.seed <= MAX_SEED:
        raise UserError(f"--seed {request.seed} is no seed. Accepted: whole numbers from 0 to {MAX_SEED}.")
    beams, options = request.options.get("num_beams"), request.options
    if beams is not None and beams < request.num_images:
        raise UserError(
            f"A search with --num-beams {beams} finds at most as many images, but --num-images is "
            f"{request.num_images}. Raise --num-beams, lower --num-images, or leave out --num-beams to draw samples."
        )
    if beams is not None and "top_k" in options:
        raise UserError(
            f"--top-k {options['top_k']} is for samples, but with --num-beams the best codes are searched. Leave out "
            f"one of the two."
        )
    if (top_k := options.get("top_k", 1)) < 1:
        raise UserError(f"--top-k {top_k}: samples are chosen among at least 1 code.")
    if not 0 < (temperature := options.get("temperature", 1)) < math.inf:
        raise UserError(f"--temperature {temperature}: the temperature is a number above 0.")


def drawing_task(request: DrawRequest) -> tuple[Task, str]:
    """The task of the model that draws, and the model's language.

    Raises:
        UserError: it has none.
    """
    tasks, _, language = read_tasks(request.model)
    drawing = [task for name, task in tasks.items() if task.answer == "image" and request.task in (None, name)]
    if not drawing:
        raise UserError(
            f"The model {request.model} does not draw: its tasks are {', '.join(tasks)}. Use one that was converted "
            f"from image_gen_base_best or image_gen_large_best."
        )
    if Path(request.model).is_dir() and not Path(request.model, VQGAN_FOLDER).is_dir():
        raise UserError(f"{request.model} has no folder {VQGAN_FOLDER}. Convert the checkpoint with --vqgan.")
    return drawing[0], language


# ------------------------------------------------------------------------------------------------------- output


def check_folder(folder: Path, request: DrawRequest, settings: Mapping[str, Any]) -> None:
    """Look whether images can go to a folder: a new one, or that of an earlier run with the same settings.

    Raises:
        UserError: it is a file, cannot be written to, or is of a run with other settings.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file. Pass a folder for the images.")
    there = next(place for place in (folder, *folder.parents) if place.exists())  # nothing is made yet
    refuse_unwritable([there / RECORD])
    kept = folder / SETTINGS
    if kept.is_file() and (seen := read_json(kept, "Pass another folder for the images.")) != settings:
        raise UserError(
            f"{folder} is of another run, with {differences(seen, settings, request)}. Pass another folder, or the "
            f"same settings to continue that run."
        )


def differences(seen: Mapping[str, Any], asked: Mapping[str, Any], request: DrawRequest) -> str:
    """What the settings of an earlier run have that others have not, in words."""
    names = {"model": f"another model than {request.model}", "clip": f"another CLIP than {request.clip}"}
    return ", ".join(
        names.get(name) or f"{name}={seen.get(name)} instead of {value}"
        for name, value in asked.items()
        if seen.get(name) != value
    )


class DrawnFolder:
    """A folder of drawn images. Its record has a line per text, written once all its images are there.

    Args:
        output: the record.
    """

    def __init__(self, path: Path, output: Any, request: DrawRequest):
        self.path, self.output, self.num_images = path, output, request.num_images
        self.texts = dict(output.done)  # number → text

    def has(self, key: Key) -> bool:
        """Whether a text is drawn.

        Raises:
            UserError: another text has its number.
        """
        number, text = key
        if self.texts.get(number, text) != text:
            raise UserError(
                f"{self.path / RECORD} is of another run: text {number} was {self.texts[number][:60]!r}. Pass another "
                f"folder, or the same texts to continue that run."
            )
        return number in self.texts and all((self.path / name).is_file() for name in self._names(number))

    def _names(self, number: str) -> list[str]:
        return [f"{int(number):04d}-{rank}.png" for rank in range(1, self.num_images + 1)]

    def add(self, key: Key, images: Sequence[Mapping[str, Any]]) -> None:
        """Write the images of a text, their sheet, and then the line that says so."""
        answers = []
        for name, one in zip(self._names(key[0]), images, strict=True):
            write_image(self.path / name, one["image"], "PNG")
            answers.append({"text": name, **{key: round(one[key], 6) for key in SCORES if key in one}})
        if len(images) > 1:
            whole = sheet([one["image"] for one in images])
            write_image(self.path / f"{int(key[0]):04d}-sheet.png", whole, "PNG")
        if key not in self.output.done:
            self.output.write(key, answers)


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's record, one per text: `{"number", "text", "image", …}` of its best image."""
    record = folder / RECORD
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.is_file() else []


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


@contextmanager
def code_bar(texts: int, is_hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr of the steps of all texts; gives the pipeline's `on_step`."""
    with tqdm(total=0, unit="step", desc="drawing", file=sys.stderr, disable=is_hidden) as bar:
        before = 0

        def on_step(done: int, total: int) -> None:
            nonlocal before
            bar.total = texts * total
            bar.update(done - before)
            before = 0 if done == total else done

        yield on_step


def say(text: str) -> None:
    tqdm.write(f"ofa-hf draw: {text}", file=sys.stderr)
