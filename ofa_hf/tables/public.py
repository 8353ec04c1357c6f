"""Public data sets by name, as they are distributed: `coco-cn:FOLDER@train` is a table of captions.

docs/data_sets.md lists their sources and licenses.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.files import read_json
from ofa_hf.inert_pickle import InertUnpickler, PickleRefused
from ofa_hf.tables.encodings import find_encoding, text_lines
from ofa_hf.tables.json_tables import COCO, JSON_LIST, read_json_table
from ofa_hf.tables.problems import MALFORMED_LINE, Problem


Rows = Iterator[tuple[int, dict[str, Any] | Problem]]

MUGE = "muge"
NUMBERED = re.compile(r"(?P<id>[^#\s]+)#(?:\w+#)?\d+\s+(?P<text>.*)")  # x.jpg#zhc#0 caption; x#0⇥caption
MAX_REFS_BYTES = 64 * 2**20
MAX_INSTANCES_BYTES = 2**30
MAX_REFS_STEPS = 50_000_000  # RefCOCOg's 95,010 sentences with their words take about 20 million


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Args:
        files: patterns of the file with the captions of a split; the first existing one is used. `{split}` is filled
            in, and `{name}` for sets with other names of splits.
        splits: name here → name in the files.
        read: function from that file and the split to rows.
        columns: columns of the rows.
    """

    files: tuple[str, ...]
    splits: dict[str, str]
    read: Callable[[Path, str], Rows]
    columns: tuple[str, ...] = ("image", "caption")


@dataclass(frozen=True)
class Named:
    """The data set of a name such as `coco-cn:FOLDER@train`."""

    name: str
    folder: Path
    split: str

    @property
    def set(self) -> PublicSet:
        return PUBLIC[self.name]

    def file(self) -> Path:
        """The file of the split.

        Raises:
            UserError: there is no such split or file.
        """
        if self.split not in self.set.splits:
            raise UserError(
                f"{self.name} has no split {self.split!r}; it has {', '.join(self.set.splits)}. Write it as "
                f"{self.name}:{self.folder}@{next(iter(self.set.splits))}."
            )
        patterns = [each.format(split=self.split, name=self.set.splits[self.split]) for each in self.set.files]
        found = next((path for each in patterns if (path := _first(self.folder, each))), None)
        if found is None:
            raise UserError(
                f"{self.folder} holds no {' or '.join(patterns)}, as {self.name} is distributed. Pass the folder "
                "of its unpacked files."
            )
        return found

    def rows(self) -> Rows:
        return self.set.read(self.file(), self.set.splits[self.split])


def _first(folder: Path, pattern: str) -> Path | None:
    """The file of this name in a folder, or below it."""
    if (folder / pattern).is_file():
        return folder / pattern
    escaped = re.sub(r"([\[\]?])", r"[\1]", pattern)
    return next(iter(sorted(folder.rglob(escaped))), None) if folder.is_dir() else None


def named_set(name: str | Path) -> Named | None:
    """The data set of a name; None if it is not the name of a public set."""
    set_name, colon, rest = str(name).partition(":")
    if not colon or set_name.lower() not in PUBLIC:
        return None
    folder, _, split = rest.rpartition("@") if "@" in rest else (rest, "", "train")
    return Named(set_name.lower(), Path(folder), split)


def _numbered_lines(path: Path, split: str, image: str = "{id}", joins_words: bool = False) -> Rows:
    """Lines of `id#number caption`."""
    for number, line in text_lines(path, find_encoding(path)):
        if line is not None and not line.strip():
            continue
        match = NUMBERED.fullmatch((line or "").strip())
        if match is None:
            yield number, Problem(MALFORMED_LINE, str(path), number, detail="expected id#number and a caption")
            continue
        text = join_words(match["text"]) if joins_words else match["text"].strip()
        name = match["id"].removesuffix(".jpg")
        yield number, {"image": image.format(id=name), "caption": text}


def join_words(text: str) -> str:
    """Join segmented Chinese: spaces remain only between Latin words or numbers."""
    joined = ""
    for word in text.split():
        is_latin = joined[-1:].isascii() and joined[-1:].isalnum() and word[0].isascii() and word[0].isalnum()
        joined += f" {word}" if is_latin else word
    return joined


def _chosen_lines(path: Path, split: str, captions: str) -> Rows:
    """COCO-CN: the captions of the ids in the file of a split."""
    ids = {line.strip() for _, line in text_lines(path, find_encoding(path)) if line and line.strip()}
    source = _first(path.parent, captions)
    if source is None:
        raise UserError(f"{path.parent} holds no {captions}. Pass the folder of COCO-CN's unpacked files.")
    for number, row in _numbered_lines(source, split):
        if isinstance(row, Problem) or row["image"] in ids:
            yield number, row if isinstance(row, Problem) else {**row, "image": f"{row['image']}.jpg"}


class RefsUnpickler(InertUnpickler):
    """Reads pickles of Python 2 with numbers, texts, lists and dicts, but no classes."""

    def __init__(self):
        super().__init__(lambda name: False)

    def spend(self, amount: int) -> None:
        self.steps += amount
        if self.steps > MAX_REFS_STEPS:
            raise PickleRefused(f"it takes more than {MAX_REFS_STEPS:,} steps, far beyond any RefCOCO")

    def step(self, name: str, argument: Any) -> None:
        if name in ("INT", "LONG", "FLOAT", "STRING", "UNICODE"):
            self.stack.append(argument)
        elif name == "PUT":
            self.put(argument)
        elif name == "GET":
            self.get(argument)
        else:
            super().step(name, argument)


def read_refs(path: Path) -> list[dict[str, Any]]:
    """The records of RefCOCO's `refs(*).p`, read as data.

    Raises:
        UserError: the file holds anything else.
    """
    try:
        with path.open("rb") as file:
            refs = RefsUnpickler().load(file, MAX_REFS_BYTES)
    except PickleRefused as error:
        raise UserError(f"{path} cannot be read: {error}. Get RefCOCO's file again.") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{path} holds no list of records. Get RefCOCO's file again.")
    return refs


def _refs(path: Path, split: str) -> Rows:
    """A row for each sentence about an object, with its box in pixels, `xmin,ymin,xmax,ymax`."""
    instances = _first(path.parent, "instances.json")
    if instances is None:
        raise UserError(f"{path.parent} holds no instances.json, which belongs next to {path.name}. Copy it there.")
    found = read_json(instances, "Get RefCOCO's file again.", max_bytes=MAX_INSTANCES_BYTES)
    try:
        names = {image["id"]: image["file_name"] for image in found["images"]}
        boxes = {annotation["id"]: annotation["bbox"] for annotation in found["annotations"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{instances} lists no images with boxes ({error}). Get RefCOCO's file again.") from error
    for number, ref in enumerate(read_refs(path), start=1):
        if ref.get("split") != split:
            continue
        try:
            left, top, width, height = boxes[ref["ann_id"]]
            name = names[ref["image_id"]]
            texts = [sentence.get("raw") or sentence["sent"] for sentence in ref["sentences"]]
        except (KeyError, TypeError, ValueError) as error:
            yield number, Problem(MALFORMED_LINE, str(path), number, detail=f"no object or image of it: {error}")
            continue
        box = ",".join(f"{side:.10g}" for side in (left, top, left + width, top + height))
        for text in texts:
            yield number, {"image": name, "text": text.strip(), "box": box, "caption": text.strip()}


def _json(path: Path, split: str, kind: str) -> Rows:
    return read_json_table(path, find_encoding(path), kind, "" if kind == JSON_LIST else "annotations")


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


COCO_CN_FILES = ("coco-cn_{split}.txt",)
HUMAN, TRANSLATED = "imageid.human-written-caption.txt", "imageid.manually-translated-caption.txt"
FLICKR30K_SPLITS = {
    "train": "flickr30kzhbbosontrain",
    "val": "flickr30kzhbbosonval",
    "test": "flickr30kzhmbosontest",
}
AIC_SPLITS = {"train": "train", "val": "validation"}
REFS = {
    "refcoco": ("refs(unc).p", "train val testA testB"),
    "refcoco+": ("refs(unc).p", "train val testA testB"),
    "refcocog": ("refs(umd).p", "train val test"),
}

PUBLIC: dict[str, PublicSet] = {
    "coco-cn": PublicSet(COCO_CN_FILES, _same(("train", "val", "test")), partial(_chosen_lines, captions=HUMAN)),
    "coco-cn-translated": PublicSet(
        COCO_CN_FILES, _same(("train", "val", "test")), partial(_chosen_lines, captions=TRANSLATED)
    ),
    "flickr8k-cn": PublicSet(
        ("flickr8kzhc.caption.txt",), {"train": "all"}, partial(_numbered_lines, image="{id}.jpg")
    ),
    "flickr30k-cn": PublicSet(
        ("TextData/seg.{name}.caption.txt",),
        FLICKR30K_SPLITS,
        partial(_numbered_lines, image="{id}.jpg", joins_words=True),
    ),
    "flickr30k-cna": PublicSet(
        ("flickr30k_cna_{split}.txt", "flickr30k_cn_{split}.txt"),
        _same(("train", "val", "test")),
        partial(_numbered_lines, image="{id}.jpg"),
    ),
    "aic-icc": PublicSet(
        ("caption_{name}_annotations*.json",), AIC_SPLITS, partial(_json, kind=JSON_LIST), ("image_id", "caption")
    ),
    "coco": PublicSet(("annotations/captions_{split}20*.json",), _same(("train", "val")), partial(_json, kind=COCO)),
    **{
        name: PublicSet((file,), _same(splits.split()), _refs, ("image", "text", "box", "caption"))
        for name, (file, splits) in REFS.items()
    },
}


def muge_files(name: str | Path) -> tuple[Path, Path] | None:
    """Captions and images of `muge:FOLDER@train`; None for any other name."""
    set_name, colon, rest = str(name).partition(":")
    if not colon or set_name.lower() != MUGE:
        return None
    folder, _, split = rest.rpartition("@") if "@" in rest else (rest, "", "train")
    return Path(folder) / f"IC_{split}.jsonl", Path(folder) / f"IC_{split}.tsv"
