"""The images in a folder and its subfolders, and counts of other files by kind."""

import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator

from ofa_hf.errors import UserError
from ofa_hf.image_formats import read_more_formats
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, missing_reader


logger = logging.getLogger(__name__)

read_more_formats()

SYSTEM_NAMES = frozenset(
    "thumbs.db ehthumbs.db desktop.ini __macosx @eadir $recycle.bin lost+found".split() + ["system volume information"]
)
HIDDEN, BROKEN_LINK, OTHER, TEXT = "hidden or system file", "broken link", "other file", "text file"
MAX_KINDS = 20  # beyond which suffixes are not told apart
KINDS = {
    "video": ".mp4 .mov .avi .mkv .webm .m4v .wmv .flv .3gp .mpg .mpeg .mts .ts .livp",
    "drawing such as SVG": ".svg .svgz .ai .eps .ps .wmf .emf .cdr",
    "raw photo": ".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw",
    "Photoshop file": ".psd .psb",
    "PDF": ".pdf",
    TEXT: ".txt .caption",
}
KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes.split()}


def walk_images(folder: str | os.PathLike, left_out: Counter[str] | None = None) -> Iterator[str]:
    """Paths of the image files in a folder and its subfolders, sorted within each.

    Hidden and system files are skipped. Links are followed, and each folder is read only once, so that links to parent
    folders do no harm.

    Args:
        left_out: counts by kind the files that are not readable images.

    Raises:
        UserError: a folder cannot be read.
    """
    left_out = Counter() if left_out is None else left_out
    for entry in walk_files(folder, left_out):
        if kind := _why_left_out(entry):
            is_rare = kind.startswith(".") and kind not in left_out and len(left_out) >= MAX_KINDS
            left_out[OTHER if is_rare else kind] += 1
        else:
            yield entry.path


def walk_files(folder: str | os.PathLike, left_out: Counter[str]) -> Iterator[os.DirEntry]:
    """All files in a folder and its subfolders except hidden and system files, in the order of `walk_images`."""
    seen, linked = set(), deque([os.fspath(folder)])
    while linked:  # links come last, so that files keep their own path if they have one here
        waiting = [linked.popleft()]
        while waiting:
            here = waiting.pop()
            if not _is_new(here, seen):
                continue
            inner = []
            for entry in _entries(here):
                if is_hidden(entry.name):
                    left_out[HIDDEN] += 1
                elif entry.is_dir(follow_symlinks=False):
                    inner.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    linked.append(entry.path)
                else:
                    yield entry
            waiting.extend(reversed(inner))


def _is_new(folder: str, seen: set) -> bool:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    key = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
    is_new = key not in seen
    seen.add(key)
    return is_new


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: str, error: OSError) -> UserError:
    return UserError(f"The folder {folder} cannot be read: {error.strerror}. Change its permissions, or leave it out.")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system file."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _why_left_out(entry: os.DirEntry) -> str:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        return KIND_OF_SUFFIX.get(suffix) or _other(suffix)
    try:
        is_file = entry.is_file()
        is_gone = not is_file and entry.is_symlink() and not stat.S_ISREG(os.lstat(entry.path).st_mode)
    except OSError:
        return BROKEN_LINK
    if not is_file:
        return BROKEN_LINK if is_gone else OTHER
    library = missing_reader(suffix)
    return f"{suffix[1:].upper()} image (pip install '{library}' to read them)" if library else ""


def _other(suffix: str) -> str:
    """What to call a file that is none of the known kinds."""
    if not suffix:
        return "file without a suffix"
    is_plain = suffix.isascii() and suffix[1:].isalnum() and not suffix[1:].isdecimal() and len(suffix) < 7
    return f"{suffix} file" if is_plain else OTHER


def left_out_line(folder: str | os.PathLike, left_out: Counter[str]) -> str:
    """One line with counts of the files left out, by kind; empty if there are none."""
    if not left_out:
        return ""
    kinds = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(left_out.items()))
    return f"Left out in {folder}: {kinds}."


def report_left_out(folder: str | os.PathLike, left_out: Counter[str]) -> None:
    """Log the files left out, if there are any."""
    if line := left_out_line(folder, left_out):
        logger.warning(line)
