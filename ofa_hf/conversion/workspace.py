"""A folder appears whole or not at all: it is built beside its place and renamed, whatever happens in between.

One conversion a target at a time. What a killed one left behind is removed by the next; a previous good folder that
was being replaced at that very moment is put back.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from ofa_hf.conversion.download import cache_folder
from ofa_hf.conversion.sources import ACCOUNT_FILE
from ofa_hf.errors import UserError


SECONDS_TO_END = 5.0  # for a process whose parent was killed


@contextmanager
def workspace_for(target: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder beside `target`, removed at the end; `publish` moves what was built in it into place.

    Raises:
        UserError: `target` holds something that must not be replaced, or another process is converting into it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = cache_folder() / "locks" / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(lock, timeout=0.1):
            clean_up(target)
            check_target(target, overwrite)
            with tempfile.TemporaryDirectory(prefix=prefix_of(target), dir=target.parent) as folder:
                yield Path(folder)
    except Timeout:
        raise UserError(
            f"Another process is converting into {target}. Wait for it or choose another folder."
        ) from None


def prefix_of(target: Path) -> str:
    return f".{target.name}.converting-"


def clean_up(target: Path) -> None:
    """Remove what a killed conversion left; put the previous folder back if that is all there is."""
    for leftover in [entry for entry in target.parent.iterdir() if entry.name.startswith(prefix_of(target))]:
        if not target.exists() and (leftover / "previous" / ACCOUNT_FILE).exists():
            os.rename(leftover / "previous", target)
        remove(leftover)


def remove(folder: Path) -> None:
    """Remove a folder, also one in which the proof of a killed conversion still writes for a moment."""
    end = time.monotonic() + SECONDS_TO_END
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists():
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier conversion, and that only when asked."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file. Give a folder that does not exist yet.")
    if any(target.iterdir()) and not (target / ACCOUNT_FILE).is_file():
        raise UserError(
            f"{target} holds other files, which are never replaced. Give a folder that does not exist yet."
        )
    if any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} holds an earlier conversion. Add --overwrite to replace it, or give another folder."
        )


def publish(built: Path, target: Path, workspace: Path) -> None:
    """Move the finished folder into place in one step; an earlier one leaves just before and returns on failure."""
    previous = workspace / "previous"
    try:
        if target.exists():
            os.rename(target, previous)
        os.rename(built, target)
    finally:
        if previous.exists() and not target.exists():
            os.rename(previous, target)
