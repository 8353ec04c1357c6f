"""Publish a model on the Hub: collect its files, verify them and push them in one commit.

Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.publishing.bundle import Bundle, bundle_of
    from ofa_hf.publishing.push import Push, publish_folder, push


__all__ = ["Bundle", "Push", "bundle_of", "publish_folder", "push"]

_HOMES = {
    "Bundle": "bundle",
    "bundle_of": "bundle",
    "Push": "push",
    "publish_folder": "push",
    "push": "push",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
