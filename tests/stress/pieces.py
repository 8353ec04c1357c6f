"""The pieces of the stress run: what each promises, what measures it, and how much of it a long and a short run does.

A piece is a function `(seed, amount, folder) -> figures`. The same seed and amount give the same inputs. `figures`
says what was measured, as values by name, or as such dictionaries by part. A broken promise raises `AssertionError`;
a machine that cannot do it raises `NotHere`. Everything it writes goes into `folder`, which is empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


Figures = dict[str, Any]


class NotHere(Exception):
    """This machine lacks what the piece needs; the message says what."""


@dataclass(frozen=True)
class Piece:
    """One promise and its measurement."""

    promise: str
    home: str  # "module:function" below tests/stress
    long: int  # amount of a long run (half an hour for all pieces); other durations take their share
    short: int  # amount in `make test`; 0: too long for it, or tested there otherwise
    unit: str = "inputs"

    def function(self) -> Callable[[int, int, Path], Figures]:
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"stress.{module}"), name)


PIECES = {
    "attacks": Piece("reading a checkpoint executes nothing", "checkpoints:attacks", 40, 1, "rounds"),
    "checkpoints": Piece("damaged checkpoints are read or refused", "checkpoints:mutations", 40_000, 300),
    "images": Piece("images of any bytes are read or refused", "images:mutations", 60_000, 1_000),
    "bombs": Piece("images too large are refused in bounded memory", "images:bombs", 3, 1, "rounds"),
    "pipeline": Piece("the pipeline captions or refuses any bytes", "images:captions", 1_500, 15),
    "data files": Piece("caption and image files of any bytes are read or refused", "files:data", 10_000, 150),
    "prediction files": Piece("prediction files of any bytes are scored or refused", "files:predictions", 30_000, 500),
    "argument files": Piece("argument files of any content are read or refused", "files:arguments", 4_000, 60),
    "texts": Piece("texts of any script encode as the official code does", "texts:texts", 10_000, 300),
    "numerics": Piece("half precision keeps to the recorded weights", "numerics:precision", 4, 1, "rounds"),
    "explosions": Piece("a learning rate that explodes stops the run", "numerics:explosions", 6, 1, "runs"),
    "nothing leaves": Piece("the journeys run with every connection refused", "network:journeys", 2, 0, "rounds"),
    "kills": Piece("a killed job is completed by the next run", "crash:kills", 50, 2, "kills"),
    "kills, long jobs": Piece("a killed job is completed by the next run", "crash:kills_of_long_jobs", 50, 0, "kills"),
    "late process": Piece(
        "a checkpoint is complete once every process wrote its part",
        "crash:kill_when_a_checkpoint_looks_complete",
        5,
        1,
        "kills",
    ),
    "full disk": Piece("a full disk is one clear line, a second run completes", "crash:full_disk", 12, 2, "runs"),
    "full disk, long jobs": Piece(
        "a full disk is one clear line, a second run completes", "crash:full_disk_of_long_jobs", 6, 0, "runs"
    ),
    "same data": Piece("processes that want the same data share one build", "concurrency:preparing", 10, 0, "races"),
    "same folder": Piece("one of two conversions into a folder is refused", "concurrency:converting", 10, 1, "races"),
    "same output": Piece("one of two runs that write one file is refused", "concurrency:captioning", 10, 1, "races"),
    "threads": Piece("threads share a pipeline and hear the same", "concurrency:threads", 400, 16, "calls"),
    "forks": Piece("a fork of a process with a model captions the same", "concurrency:forks", 20, 1, "forks"),
    "data loader": Piece("a killed data loader worker is one clear line", "concurrency:workers", 5, 1, "kills"),
    "long captioning": Piece("memory, files and speed stay", "long_runs:captions", 20_000, 1_000, "captions"),
    "long training": Piece("memory, files and speed stay", "long_runs:steps", 2_000, 80, "steps"),
}
