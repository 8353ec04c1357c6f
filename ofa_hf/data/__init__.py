"""Images with captions as `datasets` rows: MUGE, a shop's own files, any data set; views and batches for training.

A row is one image: `{"image_id": str, "image": {"bytes", "path"}, "captions": [str, …]}`. Bytes are kept as
distributed and decoded in one place, `load_image`, when a batch is made.

Names are loaded when they are first used: a process that only prepares data does without torch and its memory.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.data.collator import OFACaptionCollator, OFAGroupedCollator
    from ofa_hf.data.grouping import CaptionPairs, GroupedCaptions, GroupedCaptionSampler, ImagesById, caption_counts
    from ofa_hf.data.images import open_image
    from ofa_hf.data.muge import load_muge, load_muge_splits
    from ofa_hf.data.problems import DataReport, Problem, report_of
    from ofa_hf.data.tables import FolderImages, load_folder, load_rows, stream_rows

_HOMES = {
    "CaptionPairs": "grouping",
    "DataReport": "problems",
    "FolderImages": "tables",
    "GroupedCaptionSampler": "grouping",
    "GroupedCaptions": "grouping",
    "OFACaptionCollator": "collator",
    "OFAGroupedCollator": "collator",
    "ImagesById": "grouping",
    "Problem": "problems",
    "caption_counts": "grouping",
    "load_folder": "tables",
    "load_muge": "muge",
    "load_muge_splits": "muge",
    "load_rows": "tables",
    "open_image": "images",
    "report_of": "problems",
    "stream_rows": "tables",
}

__all__ = [
    "CaptionPairs",
    "DataReport",
    "FolderImages",
    "GroupedCaptionSampler",
    "GroupedCaptions",
    "OFACaptionCollator",
    "OFAGroupedCollator",
    "ImagesById",
    "Problem",
    "caption_counts",
    "load_folder",
    "load_muge",
    "load_muge_splits",
    "load_rows",
    "open_image",
    "report_of",
    "stream_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
