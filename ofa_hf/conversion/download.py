"""Download a published checkpoint: resumable, atomic, with a progress bar.

An official file is downloaded to `<name>.part`, which the next attempt continues, and renamed once it has the
announced size. huggingface_hub downloads legacy repositories.
"""

import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock, tqdm
from transformers.utils import logging

from ofa_hf.errors import UserError


logger = logging.get_logger(__name__)

CHUNK = 1 << 20  # bytes
ATTEMPTS = 5  # attempts in a row without a new byte
TIMEOUT = 60.0  # seconds without an answer
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
LEGACY_FILES = ["config.json", "pytorch_model.bin", "model.safetensors", "vocab.*", "merges.txt", "*token*.json"]
LEGACY_FILES += ["special_*.json"]


class Interrupted(Exception):
    """The connection broke; the bytes received so far are kept."""


def cache_folder() -> Path:
    """Folder for downloaded official files: `ofa_hf` in the Hugging Face cache."""
    return Path(constants.HF_HOME) / "ofa_hf"


def download_file(url: str, folder: str | Path | None = None, *, pause: float = 0.5) -> Path:
    """Download `url` into `folder` unless it is there already, continuing an earlier attempt.

    Args:
        folder: by default the cache; the file has the name in the URL.
        pause: seconds before a retry, doubled whenever nothing arrived.

    Raises:
        UserError: no such file, no connection, or a connection that breaks again and again.
    """
    folder = cache_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rpartition("/")[2]
    with WeakFileLock(folder / f".{target.name}.lock"):
        if not target.exists():
            fetch_patiently(url, target, pause)
    return target


def fetch_patiently(url: str, target: Path, pause: float) -> None:
    """Try until the file is complete; give up after `ATTEMPTS` attempts in a row without progress."""
    part = target.with_name(f"{target.name}.part")
    failures, reason = 0, ""
    while failures < ATTEMPTS:
        before = size_of(part)
        try:
            fetch_rest(url, part)
            os.replace(part, target)
            part.with_name(f"{part.name}.version").unlink(missing_ok=True)
            return
        except Interrupted as error:
            reason = str(error)
        failures = 0 if size_of(part) > before else failures + 1
        if failures < ATTEMPTS:
            logger.warning(f"The download of {url} broke ({reason}); trying again.")
            time.sleep(pause * 2**failures)
    raise UserError(
        f"The download of {url} broke {ATTEMPTS} times ({reason}). {size_of(part):,} bytes are kept; run the command "
        f"again to continue, or download the file by hand and pass its path."
    )


def fetch_rest(url: str, part: Path) -> None:
    """Append the rest of `url` to `part`; start over if the file has changed or cannot be continued.

    Raises:
        Interrupted: the connection broke or the server asks to come back.
        UserError: the server refuses.
    """
    version_file = part.with_name(f"{part.name}.version")
    begin, version = size_of(part), read_text(version_file)
    headers = {"User-Agent": "ofa_hf", "Accept-Encoding": "identity"}
    if begin and version:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            begin, total = where_it_continues(response, begin)
            if not begin:
                part.unlink(missing_ok=True)  # first, so that old bytes are never combined with a new version
                version_file.write_text(version_of(response), encoding="utf-8")
            append(response, part, begin, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file, so it is from another file
            part.unlink(missing_ok=True)
        if error.code == 416 or error.code in RETRY_STATUS:
            raise Interrupted(f"HTTP {error.code}") from error
        raise UserError(
            f"{url} cannot be downloaded: HTTP {error.code} {error.reason}. Check the name, or download the file by "
            f"hand and pass its path."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from error


def version_of(response: http.client.HTTPResponse) -> str:
    """Identifier of this version of the file: a strong ETag or the date; empty if the server sends neither."""
    tag = response.headers.get("ETag") or ""
    return tag if tag.startswith('"') else response.headers.get("Last-Modified") or ""


def where_it_continues(response: http.client.HTTPResponse, begin: int) -> tuple[int, int]:
    """Position of the first byte that the server sends, and size of the whole file."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == begin:
            return begin, int(match[2])
        raise Interrupted("the server continues somewhere else")
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise UserError(
            f"{response.url} does not say how large it is, so a complete file cannot be recognized. "
            f"Download it by hand and pass its path."
        )
    return 0, int(length)


def append(response: http.client.HTTPResponse, part: Path, begin: int, total: int) -> None:
    """Write the body to `part` from byte `begin` on and check that it is complete."""
    with (
        open(part, "r+b" if begin else "wb") as file,
        tqdm(total=total, initial=begin, unit="B", unit_scale=True, desc=part.stem) as bar,
    ):
        file.seek(begin)
        file.truncate()
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if size_of(part) != total:
        raise Interrupted(f"{size_of(part):,} of {total:,} bytes arrived")


def download_repository(hub_id: str) -> Path:
    """Download the model and tokenizer files of a legacy Hub repository into the Hugging Face cache.

    Raises:
        UserError: no such repository, no access, or no connection.
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=LEGACY_FILES))
    except HFValidationError as error:
        raise UserError(f"{hub_id} is neither a file, a folder, a catalogue name nor a Hub id.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The Hub repository {hub_id} cannot be downloaded ({type(error).__name__}). Check the name and the "
            f"connection (and HF_TOKEN for a private one), or pass a local folder."
        ) from error


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
