"""Jobs in child processes that can be killed at any moment, and small disks that can be filled.

A job runs in a fork of this process, which has imported everything already: a run takes what the work itself takes.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from stress.pieces import NotHere
from tqdm.std import TqdmDefaultWriteLock, tqdm


PATIENCE = 120.0  # seconds; whatever takes longer hangs


def fork(job: Callable[[], int | None], log: Path) -> int:
    """Run a job in a child process, group and all; what it prints goes to `log`. Returns the child's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os._exit(_run_here(job, log))
    return child


def _run_here(job: Callable[[], int | None], log: Path) -> int:
    """The child's life, with a group and streams of its own; returns the job's exit status."""
    os.setsid()
    take_own_progress_lock()
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    for number in (1, 2):
        os.dup2(sys.stdout.fileno(), number)
    return status_of(job)


def take_own_progress_lock() -> None:
    """Forks share tqdm's lock between processes: one that a killed sibling held would never be free again."""
    TqdmDefaultWriteLock.mp_lock = multiprocessing.RLock()
    kinds = [tqdm]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        kind.set_lock(TqdmDefaultWriteLock())


def status_of(job: Callable[[], int | None]) -> int:
    """Run a job; returns its exit status, 70 for an exception, whose traceback is printed."""
    try:
        return job() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()


def ended(child: int, within: float) -> int | None:
    """The child's exit status (negative: the signal that ended it), or None if it still runs after so many seconds."""
    end = time.monotonic() + within
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def run(job: Callable[[], int | None], log: Path) -> int:
    """Run a job to its end; returns its exit status."""
    child = fork(job, log)
    status = ended(child, PATIENCE)
    if status is None:
        kill(child)
        raise AssertionError(f"nothing came to an end within {PATIENCE} s\n{tail(log)}")
    clear_away(child)
    return status


def run_and_kill(job: Callable[[], int | None], log: Path, after: float, end: Callable[[int], None]) -> bool:
    """Kill a job after so many seconds by `end`; returns whether that came before its end."""
    child = fork(job, log)
    status = ended(child, after)
    if status is None:
        end(child)
    return status is None


def kill(child: int) -> None:
    """Kill a child alone; its own children live on."""
    os.kill(child, signal.SIGKILL)  # one that ended stays until it is waited for
    os.waitpid(child, 0)


def kill_group(child: int) -> None:
    """Kill a child and its children at once, as when a machine loses power."""
    clear_away(child)
    kill(child)


def kill_last_born(child: int) -> None:
    """Kill a child's youngest child, whose end the child is to notice and to end itself."""
    for victim in psutil.Process(child).children()[-1:]:
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
    if ended(child, PATIENCE) is None:
        kill_group(child)
        raise AssertionError(f"nobody noticed within {PATIENCE} s that a process was killed")


def clear_away(child: int) -> None:
    """End what a child left running."""
    with suppress(ProcessLookupError):  # nothing, or it has no group of its own yet
        os.killpg(child, signal.SIGKILL)


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-lines:]) if log.exists() else ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes in memory, mounted at a folder.

    Raises:
        NotHere: this process may not mount anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotHere("there is no command `mount`") from error
    if done.returncode:
        raise NotHere(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def used_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def leave_free(disk: Path, size: int) -> Path:
    """Fill a disk until so many bytes are left; returns the file that does."""
    status, ballast = os.statvfs(disk), disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - size))
    return ballast
