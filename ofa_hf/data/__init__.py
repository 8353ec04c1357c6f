"""Pictures with captions as `datasets` rows: MUGE, a shop's own files, any data set; views and batches for training.

A row is one picture: `{"image_id": str, "image": {"bytes", "path"}, "captions": [str, …]}`. Bytes are kept as
distributed and decoded in one place, `load_picture`, when a batch is made.

Names are loaded when they are first used: a process that only prepares data does without torch and its memory.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.data.collator import OFACaptionCollator, OFAGroupedCollator
    from ofa_hf.data.muge import load_muge, load_muge_splits
    from ofa_hf.data.own import FolderPictures, load_folder, load_rows, stream_rows
    from ofa_hf.data.pairs import CaptionPairs, GroupedCaptions, GroupedCaptionSampler, PicturesById, caption_counts
    from ofa_hf.data.pictures import open_picture
    from ofa_hf.data.problems import DataReport, Problem, report_of

_HOMES = {
    "CaptionPairs": "pairs",
    "DataReport": "problems",
    "FolderPictures": "own",
    "GroupedCaptionSampler": "pairs",
    "GroupedCaptions": "pairs",
    "OFACaptionCollator": "collator",
    "OFAGroupedCollator": "collator",
    "PicturesById": "pairs",
    "Problem": "problems",
    "caption_counts": "pairs",
    "load_folder": "own",
    "load_muge": "muge",
    "load_muge_splits": "muge",
    "load_rows": "own",
    "open_picture": "pictures",
    "report_of": "problems",
    "stream_rows": "own",
}

__all__ = [
    "CaptionPairs",
    "DataReport",
    "FolderPictures",
    "GroupedCaptionSampler",
    "GroupedCaptions",
    "OFACaptionCollator",
    "OFAGroupedCollator",
    "PicturesById",
    "Problem",
    "caption_counts",
    "load_folder",
    "load_muge",
    "load_muge_splits",
    "load_rows",
    "open_picture",
    "report_of",
    "stream_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
