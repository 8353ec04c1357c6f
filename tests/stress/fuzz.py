"""Inputs by the thousand, tried in child processes under watch: each must end in a result or in the documented error.

What counts as a defect: any other exception, a message that is not one printable line, a crash, a hang, a process or
connection started, text executed, a file written outside the folder, memory or time beyond the bound, and a setting of
Python, Pillow, torch or transformers that is another one afterwards.
"""

import contextlib
import csv
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stress import processes
from stress.pieces import Figures


SHARE_OF_A_WORKER = 1000  # inputs; more are shared by two
ROOM = 6 * 2**30  # bytes of address space beyond those in use: whoever asks for more gets a MemoryError
MAX_MESSAGE = 1500  # characters
KEPT_DEFECTS = 20
STARTS_SOMETHING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen")
STARTS_SOMETHING += ("pty.spawn", "ctypes.dlopen", "pickle.find_class", "webbrowser.open", "sys.addaudithook")
CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "ftplib.connect")
CHANGES_FILES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Target:
    """What is tried. One object a worker process.

    Args:
        folder: for the target's files.
    """

    refusals: tuple[type[Exception], ...] = ()  # the documented errors
    seconds = 20.0  # for one input
    megabytes = 400  # by which the peak of memory may grow over all inputs
    number = 0  # of the input that is made now

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, chance: random.Random) -> Any:
        """One input."""
        raise NotImplementedError

    def attempt(self, made: Any) -> str:
        """Try an input; returns a word for what became of it. Raises `AssertionError` if the result is wrong."""
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------- the parent


def try_inputs(target: type[Target], seed: int, amount: int, folder: Path) -> Figures:
    """Try so many inputs of a target.

    Returns:
        inputs, how many ended how, the longest CPU time in milliseconds, growth of memory in MB.
    """
    workers = min(2, 1 + amount // (2 * SHARE_OF_A_WORKER))
    current = mmap.mmap(-1, 8 * workers)  # the input that each worker is at
    shares = [range(worker, amount, workers) for worker in range(workers)]
    jobs = [partial(work, target, seed, share, folder, current, worker) for worker, share in enumerate(shares)]
    children = [processes.fork(job, log_of(folder, worker)) for worker, job in enumerate(jobs)]
    try:
        watch(dict(enumerate(children)), current, target, folder)
    finally:
        for child in children:
            processes.clear_away(child)
    reports = [json.loads(report_of(folder, worker).read_text(encoding="utf-8")) for worker in range(workers)]
    defects = [defect for report in reports for defect in report["defects"]]
    assert not defects, f"{target.__name__}, seed {seed}: {len(defects)} defects\n" + "\n".join(defects[:5])
    growth = max(report["megabytes"] for report in reports)
    assert growth <= target.megabytes, f"{target.__name__}, seed {seed}: memory grew by {growth} MB"
    outcomes = sum((Counter(report["outcomes"]) for report in reports), Counter())
    slowest, at = max(report["slowest"] for report in reports)
    return {"inputs": amount, **outcomes, "slowest ms": round(1000 * slowest), "it is input": at, "growth MB": growth}


def watch(running: dict[int, int], current: mmap.mmap, target: type[Target], folder: Path) -> None:
    """Wait for the workers; one that crashes, or stays at an input, is a defect."""
    at, since = {}, dict.fromkeys(running, time.monotonic())
    while running:
        for worker, child in list(running.items()):
            status, number = processes.ended(child, 0.02), struct.unpack_from("<q", current, 8 * worker)[0]
            if status is not None:
                del running[worker]
                assert status == 0, f"crash ({status}) at input {number}\n{processes.tail(log_of(folder, worker))}"
            if at.get(worker) != number:
                at[worker], since[worker] = number, time.monotonic()
            patience = 2 * target.seconds + 60  # the worker itself gives up earlier, unless it hangs outside Python
            assert time.monotonic() - since[worker] < patience, f"{target.__name__} hangs at input {number}"


def log_of(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.log"


def report_of(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.json"


# ------------------------------------------------------------------------------------------------ the child


def work(target: type[Target], seed: int, numbers: range, folder: Path, current: mmap.mmap, worker: int) -> None:
    """Try the inputs of these numbers and write down what became of them."""
    place = folder / f"worker-{worker}"
    place.mkdir()
    os.chdir(place)  # what a hostile input writes by a plain name
    tried, events = target(place), []
    warnings.simplefilter("ignore")  # before the settings are taken down
    warm_up(tried, seed)
    bound_memory()
    sys.addaudithook(partial(note_event, events, place))
    outcomes, defects, slowest = Counter(), [], (0.0, -1)
    before, peak = settings(), peak_megabytes()
    for number in numbers:
        struct.pack_into("<q", current, 8 * worker, number)
        tried.number = number
        start = time.process_time()  # other processes' share of the machine is not the input's fault
        try:
            outcome = try_one(tried, random.Random(f"{seed}/{number}"), events)
        except Exception as error:
            outcome = "defect"
            defects.append(f"input {number}: {last_lines(error)}")
        outcomes[outcome] += 1
        slowest = max(slowest, (time.process_time() - start, number))
        if len(defects) >= KEPT_DEFECTS:
            break
    if settings() != before:
        defects.append(f"settings are no longer {before} but {settings()}")
    report = {"outcomes": outcomes, "defects": defects, "slowest": slowest, "megabytes": peak_megabytes() - peak}
    report_of(folder, worker).write_text(json.dumps(report), encoding="utf-8")


def warm_up(target: Target, seed: int) -> None:
    """Let libraries load what they load late: that executes files, which the audit would take for an attack."""
    for number in range(30):
        with contextlib.suppress(Exception):
            target.attempt(target.make(random.Random(f"warm-up {seed}/{number}")))


def try_one(target: Target, chance: random.Random, events: list[str]) -> str:
    made, outcome = target.make(chance), "refused"
    events.clear()
    try:
        with time_limit(target.seconds):
            outcome = target.attempt(made)
    except target.refusals as error:
        check_message(str(error))
    assert not events, f"{outcome}, but did: {events[:3]}"
    return outcome


def check_message(text: str) -> None:
    """One line for a person, which any terminal or log file takes."""
    assert text.strip(), "the message is empty"
    assert len(text.splitlines()) == 1, f"the message has several lines: {text[:300]!r}"
    assert len(text) <= MAX_MESSAGE, f"the message has {len(text):,} characters: {text[:300]!r}"
    assert text.replace("\u3000", "").isprintable(), f"the message holds control characters: {text[:300]!r}"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def late(*_):
        raise TimeoutError(f"no end within {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def note_event(events: list[str], place: Path, event: str, arguments: tuple) -> None:
    """An audit hook: writes down what reading an input has no business to do."""
    if event == "ctypes.dlopen" and arguments[0] == "libnvidia-ml.so.1":
        return  # torch asks whether there is a GPU
    if event in STARTS_SOMETHING or event in CONNECTS:
        events.append(f"{event} {arguments!r:.200}")
    elif event in ("exec", "compile"):
        file = getattr(arguments[0], "co_filename", "") if event == "exec" else str(arguments[1])
        if not os.path.isfile(file):  # code of an installed file is a late import, text is not
            events.append(f"{event} {arguments!r:.200}")
    elif event in CHANGES_FILES:
        if not is_below(place, arguments[0]):
            events.append(f"{event} {arguments!r:.200}")
    elif event == "open" and opens_for_writing(*arguments) and not is_below(place, arguments[0]):
        events.append(f"open {arguments!r:.200}")


def opens_for_writing(path: Any, mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


def is_below(place: Path, path: Any) -> bool:
    if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor that is open already
        return True
    full = os.path.abspath(os.fsdecode(path))  # not resolved, since that would raise events of its own
    return full == str(place) or full.startswith((f"{place}{os.sep}", "/dev/"))


def settings() -> dict[str, Any]:
    """What belongs to the host program and must stay as it was."""
    found = {"csv": csv.field_size_limit(), "filters": len(warnings.filters), "recursion": sys.getrecursionlimit()}
    found |= {"folder": os.getcwd(), "signals": [str(signal.getsignal(number)) for number in (2, 15)]}
    modules = {
        name: sys.modules[name] for name in ("PIL.Image", "PIL.ImageFile", "PIL.PngImagePlugin") if name in sys.modules
    }
    for module in modules.values():
        numbers = {
            name: value
            for name, value in vars(module).items()
            if name.isupper() and isinstance(value, (int, bool, type(None)))
        }
        found |= {f"{module.__name__}.{name}": value for name, value in numbers.items()}
    if "torch" in sys.modules:
        import torch

        found |= {"dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads()}
        found |= {"gradients": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled()}
    if "transformers" in sys.modules:
        from transformers.utils import logging

        found["verbosity"] = logging.get_verbosity()
    return found


def bound_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, resource.RLIM_INFINITY))


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def last_lines(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:600]} ({places})"
