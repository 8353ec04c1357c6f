"""Rows of a task as `datasets` data sets: loaders for MUGE, tables and any data set, views and batches for training.

A row is a dict `{"id": str, "image": {"bytes", "path"}, <the task's fields>, "targets": [str, …]}`. Fields are texts
that fill the task's prompt; rows of a task without images have no `image`. Images are stored as distributed and
decoded when a batch is made.

Names are imported on first use, so that a process that only prepares data does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.data.collator import OFACollator
    from ofa_hf.data.grouping import GroupedTargets, GroupedTargetSampler, ImagesById, count_targets
    from ofa_hf.data.muge import load_muge, load_muge_splits
    from ofa_hf.data.problems import DataReport, Problem, report_of
    from ofa_hf.data.tables import FolderImages, load_rows, load_table, stream_rows

_MODULES = {
    "DataReport": "problems",
    "FolderImages": "tables",
    "GroupedTargetSampler": "grouping",
    "GroupedTargets": "grouping",
    "ImagesById": "grouping",
    "OFACollator": "collator",
    "Problem": "problems",
    "count_targets": "grouping",
    "load_muge": "muge",
    "load_muge_splits": "muge",
    "load_rows": "tables",
    "load_table": "tables",
    "report_of": "problems",
    "stream_rows": "tables",
}

__all__ = [
    "DataReport",
    "FolderImages",
    "GroupedTargetSampler",
    "GroupedTargets",
    "ImagesById",
    "OFACollator",
    "Problem",
    "count_targets",
    "load_muge",
    "load_muge_splits",
    "load_rows",
    "load_table",
    "report_of",
    "stream_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
