"""Boxes drawn on images: with their labels, in a script that the machine's fonts have, into a folder of their own."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

from ofa_hf.errors import UserError
from ofa_hf.files import write_image
from ofa_hf.image_loading_ofa import URL_PREFIXES, ImageError, load_image
from ofa_hf.prediction.inputs import image_of
from ofa_hf.prediction.outputs import Box, Name
from ofa_hf.prediction.questions import Rows
from ofa_hf.prediction.reading import read_ahead
from ofa_hf.tasks_ofa import Task


COLOURS = "#e6194b #2c8a3b #4363d8 #d2691e #911eb4 #008080 #9a6324 #808000 #c71585 #000075".split()
MARK = ".drawn_by_ofa_hf"  # a folder with this file may be written to again
# Fonts with Chinese, by the names that systems and packages give their files.
CHINESE_FONTS = (
    "NotoSansCJK SourceHanSans NotoSansSC NotoSerifCJK wqy-microhei wqy-zenhei msyh simhei simsun Deng PingFang "
    "STHeiti Hiragino Arial-Unicode ArialUnicode uming ukai DroidSansFallback sarasa"
).split()
FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    r"C:\Windows\Fonts",
)
READ_AHEAD = 8
MAX_LABEL = 200  # characters of a label that is shortened

Ground = tuple[int, int, int, int]  # left, top, right and bottom of what a label stands on, in pixels


class Labelled(NamedTuple):
    """A box in pixels and what is in it."""

    sides: Sequence[float]
    label: str
    colour: str


def draw_boxes(image: Image.Image, boxes: Sequence[Labelled], with_labels: bool = True) -> Image.Image:
    """A copy of an image with boxes and their labels, each label at the corner of its box and inside the image.

    Labels of boxes that overlap stand below each other. One that is wider than the image is shortened.
    """
    drawn = image.convert("RGB")
    pen, stroke = ImageDraw.Draw(drawn), max(2, round(min(image.size) / 200))
    font = label_font(max(12, round(min(image.size) / 28)))
    for box in boxes:
        pen.rectangle(tuple(map(round, box.sides)), outline=box.colour, width=stroke)
    taken: list[Ground] = []
    for box in boxes if with_labels else ():
        label = shortened(box.label, lambda text: pen.textlength(text, font) + 2 * stroke <= image.width)
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        size = round(right - left) + 2 * stroke, round(bottom - top) + 2 * stroke
        ground = free_ground(box.sides, size, image.size, taken)
        taken.append(ground)
        pen.rectangle(ground, fill=box.colour)
        pen.text((ground[0] + stroke - left, ground[1] + stroke - top), label, fill="white", font=font)
    return drawn


def shortened(label: str, fits: Callable[[str], bool]) -> str:
    """A label that fits: its last word, which is the score, stays, and the words before it end in dots."""
    if fits(label):
        return label
    text, _, score = label.rpartition(" ")
    lengths = range(min(len(text), MAX_LABEL), 0, -1)
    return next(filter(fits, (f"{text[:length].rstrip()}… {score}" for length in lengths)), score)


def free_ground(
    sides: Sequence[float], size: tuple[int, int], image_size: tuple[int, int], taken: Sequence[Ground]
) -> Ground:
    """Where a label goes: above its box, or as far below that as it takes to leave other labels uncovered."""
    width, height = size
    left, top = round(sides[0]), round(sides[1])
    x = max(0, min(left, image_size[0] - width))
    ys = [max(0, min(top + step * height, image_size[1] - height)) for step in range(-1, len(taken) + 1)]
    grounds = [(x, y, x + width, y + height) for y in ys]
    return min(grounds, key=lambda ground: sum(shared_area(ground, other) for other in taken))


def shared_area(one: Ground, other: Ground) -> int:
    """Pixels that two rectangles share."""
    width, height = (min(one[side + 2], other[side + 2]) - max(one[side], other[side]) for side in (0, 1))
    return max(0, width) * max(0, height)


@lru_cache
def chinese_font() -> str | None:
    """The path of a font of this machine that has Chinese; None if there is none."""
    files = chain.from_iterable(os.walk(os.path.expanduser(folder)) for folder in FONT_FOLDERS)
    there = {name: os.path.join(parent, name) for parent, _, names in files for name in sorted(names)}
    fonts = [path for name, path in sorted(there.items()) if name.lower().endswith((".ttf", ".ttc", ".otf"))]
    for start in CHINESE_FONTS:
        for path in fonts:
            if os.path.basename(path).lower().startswith(start.lower()) and _opens(path):
                return path
    return None


def _opens(path: str) -> bool:
    try:
        ImageFont.truetype(path, 12)
        return True
    except OSError:
        return False


@lru_cache
def label_font(size: int) -> Any:
    return ImageFont.truetype(chinese_font(), size) if chinese_font() else ImageFont.load_default(size)


def can_write(text: str) -> bool:
    """Whether the font of labels has all characters of a text, as far as is known."""
    return text.isascii() or chinese_font() is not None


class DrawnImages:
    """A `Report` that draws every image with the boxes that were found in it, into a folder.

    Several models' boxes have a colour each; those of one model have a colour per phrase. Files keep their places
    below the folder that all inputs share.

    Args:
        folder: new, empty, or written by an earlier run.
        say: called with what the user should know.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, say: Callable[[str], None] = lambda text: None):
        self.folder, self.say, self.has_said = Path(folder), say, False
        mark = self.folder / MARK
        if self.folder.exists() and not mark.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"--draw {self.folder} exists and was not written by this command. Accepted: a new folder, or that of "
                f"an earlier run. Choose another name."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise UserError(
                f"--draw {self.folder} cannot be written: {error.strerror}. Choose another one."
            ) from error

    def owns(self, file: str) -> bool:
        """Whether an image lies in the folder, as drawn by an earlier run."""
        return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(self.folder))

    def check(self, rows: Rows, task: Task) -> None:
        """Refuse a task that finds no boxes, and inputs that would be overwritten.

        Raises:
            UserError: either of them.
        """
        if task.answer != "boxes":
            raise UserError(f"--draw draws boxes, but the task {task.name} answers with texts. Leave it out.")
        inside = next((file for file in files_of(rows.names, rows.columns) if self.owns(os.path.realpath(file))), None)
        if inside:
            raise UserError(f"--draw {self.folder} would overwrite {inside}, an input. Choose another folder.")

    def write(
        self,
        names: Sequence[Name],
        answers: Mapping[str, Mapping[Name, list[Box]]],
        run: Mapping[str, object],
        on_row: Callable[[], object] = lambda: None,
        columns: tuple[str, ...] = ("file", "text"),
    ) -> None:
        """Draw every image that has an answer; arguments are those of `Report`."""
        groups = [list(group) for _, group in groupby(names, lambda name: files_of([name], columns)[0])]
        groups = [
            group for group in groups if any(name in of_model for of_model in answers.values() for name in group)
        ]
        places = places_below([files_of(group[:1], columns)[0] for group in groups])
        for (group, place), image in read_ahead(zip(groups, places), lambda item: _load(item[0], columns), READ_AHEAD):
            if not isinstance(image, ImageError):
                self._save(draw_boxes(image, self._labelled(group, answers)), self.folder / place)
            for _ in group:
                on_row()

    def _labelled(self, group: Sequence[Name], answers: Mapping[str, Mapping[Name, list[Box]]]) -> list[Labelled]:
        boxes = []
        for number, of_model in enumerate(answers.values()):
            for place, name in enumerate(group):
                colour = COLOURS[(number if len(answers) > 1 else place) % len(COLOURS)]
                for box in of_model.get(name, ()):
                    if box.sides is not None:
                        boxes.append(Labelled(box.sides, self._label(name, place, box), colour))
        return boxes

    def _label(self, name: Name, place: int, box: Box) -> str:
        text = " ".join(name[1:]) if isinstance(name, tuple) else ""
        if not can_write(text):
            if not self.has_said:
                self.say(
                    "no font of this machine has Chinese, so labels are numbers, in the order of the phrases. "
                    "Install one, such as fonts-noto-cjk."
                )
            self.has_said, text = True, str(place + 1)
        return f"{text} {box.score:.2f}".strip()

    @staticmethod
    def _save(image: Image.Image, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"quality": 92} if path.suffix.lower() in (".jpg", ".jpeg") else {}
        write_image(path, image, "JPEG" if options else "PNG", **options)


def _load(group: Sequence[Name], columns: tuple[str, ...]) -> Image.Image:
    return load_image(image_of(files_of(group[:1], columns)[0]))


def files_of(names: Sequence[Name], columns: tuple[str, ...]) -> list[str]:
    """The files of rows."""
    at = columns.index("file")
    return [name if isinstance(name, str) else name[at] for name in names]


def paths_below(files: Sequence[str]) -> list[str]:
    """Paths of files below the folder that they share; of URLs their last part."""
    here = [os.path.abspath(file) for file in files if not file.startswith(URL_PREFIXES)]
    shared = os.path.commonpath([os.path.dirname(file) for file in here]) if here else ""
    return [
        os.path.basename(urlsplit(file).path) or "image"
        if file.startswith(URL_PREFIXES)
        else os.path.relpath(os.path.abspath(file), shared)
        for file in files
    ]


def places_below(files: Sequence[str]) -> list[str]:
    """Where images go in another folder: their paths below the folder that they share, as JPEG or PNG.

    No two get the same place.
    """
    places, used = [], set()
    for place in paths_below(files):
        place, suffix = os.path.splitext(place)
        suffix = suffix if suffix.lower() in (".jpg", ".jpeg", ".png") else f"{suffix}.png"
        number, candidate = 1, place + suffix
        while candidate in used:
            number += 1
            candidate = f"{place}_{number}{suffix}"
        used.add(candidate)
        places.append(candidate)
    return places
