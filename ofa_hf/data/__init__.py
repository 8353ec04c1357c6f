"""Rows of a task as `datasets` data sets: loaders for MUGE, tables and any data set, views and batches for training.

A row is a dict `{"id": str, "image": {"bytes", "path"}, <fields of the task>, "targets": [str, …]}`. Fields are texts
for the task's prompt; rows of a task without images have no `image`. Images are stored as distributed and
decoded when a batch is made.

Names are imported on first use, so that a process that only prepares data does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.data.collator import OFACollator
    from ofa_hf.data.grouping import GroupedTargets, GroupedTargetSampler, ImagesById, count_targets
    from ofa_hf.data.muge import load_muge, load_muge_splits
    from ofa_hf.data.tables import FolderImages, load_rows, load_table, stream_rows
    from ofa_hf.tables.problems import DataReport, Problem, report_of

_MODULES = {
    "DataReport": "ofa_hf.tables.problems",
    "FolderImages": "ofa_hf.data.tables",
    "GroupedTargetSampler": "ofa_hf.data.grouping",
    "GroupedTargets": "ofa_hf.data.grouping",
    "ImagesById": "ofa_hf.data.grouping",
    "OFACollator": "ofa_hf.data.collator",
    "Problem": "ofa_hf.tables.problems",
    "count_targets": "ofa_hf.data.grouping",
    "load_muge": "ofa_hf.data.muge",
    "load_muge_splits": "ofa_hf.data.muge",
    "load_rows": "ofa_hf.data.tables",
    "load_table": "ofa_hf.data.tables",
    "report_of": "ofa_hf.tables.problems",
    "stream_rows": "ofa_hf.data.tables",
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
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
