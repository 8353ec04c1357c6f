"""Atomic files and folders, and JSON files that are read with limits.

Files and folders are written under a temporary name and renamed at the end, so they are complete or absent even if the
process is killed.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ofa_hf.errors import UserError


HUB_FILE = re.compile(r"(modeling_ofa\w*|\w+_ofa)\.py")  # code that is copied into every saved model
MAX_JSON_BYTES = 100_000_000  # the largest JSON file here is the index of a sharded model
LFS_START = b"version https://git-lfs.github.com/spec/"
SECONDS_TO_END = 5.0  # for a process whose parent was killed


# ---------------------------------------------------------------------------------------------------- files


def read_json(path: str | Path, advice: str = "Restore the file.", max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        advice: what to do if the file cannot be read; the last sentence of the message.
        max_bytes: larger files are refused unread.

    Raises:
        UserError: the file is missing, too large or not JSON, or holds something other than an object.
    """
    path = Path(path)
    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, at most {max_bytes:,} are accepted")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. {advice}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. {advice}") from error
    return values


def json_text(values: Any) -> str:
    """Values as indented JSON for people: Chinese is not escaped, and the text ends with a newline."""
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def write_json(path: str | Path, values: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json_text(values))


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically: an earlier one stays until the new one is complete."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_image(path: str | Path, image: Any, format: str, **options: Any) -> None:
    """Write a PIL image atomically; `options` are those of its `save`."""
    data = io.BytesIO()
    image.save(data, format, **options)
    write_bytes(path, data.getvalue())


def refuse_unwritable(paths: Iterable[str | Path]) -> None:
    """Check that files can be written before the work whose results they will hold. Creates their folders.

    Raises:
        UserError: one cannot.
    """
    for path in map(Path, paths):
        try:
            if path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.open("ab").close()
            with tempfile.TemporaryFile(dir=path.parent):  # atomic writes need the folder, not the file
                pass
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Name a file in a folder that you may write to."
            ) from error


def make_writable(folder: str | Path) -> None:
    """Create a folder unless it exists, and check that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written: {error.strerror or error}. Name one that you may write to."
        ) from error


def hub_files() -> list[Path]:
    """Code files of this package that are copied into every Hub-ready folder."""
    return [file for file in sorted(Path(__file__).parent.iterdir()) if HUB_FILE.fullmatch(file.name)]


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer, which `git clone` leaves in place of a large file if Git LFS is not installed.

    Raises:
        UserError: the file is a pointer.
    """
    with open(path, "rb") as file:
        is_pointer = file.read(len(LFS_START)) == LFS_START
    if is_pointer:
        raise UserError(
            f"{path} is a Git LFS pointer of {path.stat().st_size:,} bytes, not the file itself. Run `git lfs pull` "
            f"in its folder, or download the file from the page of the repository."
        )


def file_digest(path: str | Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------- folders


class NewFolder(NamedTuple):
    """The temporary places of a new folder."""

    folder: Path  # moved into place at the end
    scratch: Path  # deleted at the end


def refuse_existing(target: Path) -> None:
    """Raises `UserError` if there is anything other than an empty folder at `target`."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already and is never replaced. Pass a folder that does not exist yet.")


@contextmanager
def new_folder(target: str | Path, check: Callable[[Path], None] = refuse_existing) -> Iterator[NewFolder]:
    """Build a folder next to `target` and move it there if the block succeeds; an earlier one is replaced.

    Only one process at a time can write a target. The next one removes what a killed process left, and restores an
    earlier folder that was being replaced.

    Args:
        check: called with `target` before anything is built; raises `UserError` if it must not be replaced.

    Raises:
        UserError: `check` refuses, another process is writing `target`, or its parent cannot be written.
    """
    target = Path(target).absolute()
    make_writable(target.parent)
    with _only_writer(target):
        _clean_up(target)
        check(target)
        with tempfile.TemporaryDirectory(
            prefix=_prefix(target), dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            new = NewFolder(Path(work) / "folder", Path(work) / "scratch")
            new.folder.mkdir()
            new.scratch.mkdir()
            yield new
            _move_into_place(new.folder, target, Path(work))


@contextmanager
def _only_writer(target: Path) -> Iterator[None]:
    from filelock import Timeout
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.utils import WeakFileLock

    lock = Path(HF_HOME) / "ofa_hf" / "locks" / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(lock, timeout=0.1):
            yield
    except Timeout:
        raise UserError(f"Another process is writing {target}. Wait for it or choose another folder.") from None


def _prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"


def _clean_up(target: Path) -> None:
    """Remove what a killed process left, and restore the earlier folder if it was being replaced."""
    for leftover in [entry for entry in target.parent.iterdir() if entry.name.startswith(_prefix(target))]:
        if not target.exists() and (leftover / "previous").is_dir():
            os.rename(leftover / "previous", target)
        _remove(leftover)


def _remove(folder: Path) -> None:
    """Remove a folder, even if a child of a killed process is still writing into it."""
    end = time.monotonic() + SECONDS_TO_END
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists():
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)


def _move_into_place(built: Path, target: Path, work: Path) -> None:
    """Move the new folder into place; the earlier one is moved away first, and back if that fails."""
    previous = work / "previous"
    try:
        if target.exists():
            os.rename(target, previous)
        os.rename(built, target)
    finally:
        if previous.exists():
            os.rename(previous, work / "replaced" if target.exists() else target)
