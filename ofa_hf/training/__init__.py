"""Finetuning with transformers' Trainer: arguments, data, locking, trainer, results.

Names are imported on first use, so that commands that do not train start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.training.arguments import RECIPES, FinetuneArguments, parse_arguments
    from ofa_hf.training.finetuning import FinetuneResult, TrainingStopped, finetune
    from ofa_hf.training.locking import lock
    from ofa_hf.training.trainer import FairseqAdamW, OFATrainer


__all__ = [
    "RECIPES",
    "FairseqAdamW",
    "FinetuneArguments",
    "FinetuneResult",
    "OFATrainer",
    "TrainingStopped",
    "finetune",
    "lock",
    "parse_arguments",
]

_MODULES = {
    "RECIPES": "arguments",
    "FairseqAdamW": "trainer",
    "FinetuneArguments": "arguments",
    "FinetuneResult": "finetuning",
    "OFATrainer": "trainer",
    "TrainingStopped": "finetuning",
    "finetune": "finetuning",
    "lock": "locking",
    "parse_arguments": "arguments",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
