"""Images that a table names by links: downloaded once into a cache, several at a time."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from urllib.parse import quote, urlsplit

from datasets.utils import tqdm

from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, URL_PREFIXES, URL_TIMEOUT, ImageError


MAX_BYTES = 100 * 2**20  # limit of one image
CHUNK = 2**18  # bytes read at a time
THREADS = 16
PATIENCE = 4  # limit for a whole image, as a multiple of the timeout
REFUSED_TYPES = (
    "text/",
    "application/json",
    "application/xhtml",
    "video/",
    "audio/",
)  # content types of what a server may send in place of an image


def is_link(name: str) -> bool:
    """Whether a name of an image is a link to a server."""
    return name.lower().startswith(URL_PREFIXES)


class LinkedImages:
    """A cache of images by their links. Images in the cache are not downloaded again.

    Args:
        cache: parent of the folder `links`.
        timeout: seconds to wait for a server to send something; an image may take `PATIENCE` times as long.
        limit: bytes of one image.
    """

    def __init__(self, cache: Path, timeout: float = URL_TIMEOUT, limit: int = MAX_BYTES):
        self.folder = cache / "links"
        self.timeout, self.limit = timeout, limit
        self.count = 0  # links whose image is in the cache
        self.failures: dict[str, str] = {}

    def fetch(self, names: Iterable[str]) -> None:
        """Download the images of all links among these names. The next run retries failed ones."""
        links = filter(is_link, names)
        with ThreadPoolExecutor(THREADS) as pool, tqdm(desc="links", unit=" images", disable=None, leave=False) as bar:
            seen: set[bytes] = set()
            while batch := list(islice(_once(links, seen), 4 * THREADS)):
                for link, reason in zip(batch, pool.map(self._fetch_one, batch), strict=True):
                    self.count += not reason
                    if reason:
                        self.failures[link] = reason
                    bar.update()

    def path(self, link: str) -> str | None:
        """Path of the image of a link; None if it could not be downloaded."""
        path = self._target(link)
        return str(path) if path.is_file() else None

    def fetched(self, link: str) -> str:
        """Where the image of a link is, after it was fetched if it was not there.

        Raises:
            ImageError: that failed.
        """
        if reason := self._fetch_one(link):
            raise ImageError(f"{link[:500]} cannot be fetched: {reason}. Run the command again to try again.")
        return str(self._target(link))

    def explain(self, link: str) -> str:
        """Why a link has no image."""
        return f"{self.failures.get(link, 'it was not fetched')}; run the command again to try again"

    def _target(self, link: str) -> Path:
        suffix = os.path.splitext(urlsplit(link).path)[1].lower()
        name = hashlib.sha256(link.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.folder / name[:2] / (name + (suffix if suffix in IMAGE_SUFFIXES else ""))

    def _fetch_one(self, link: str) -> str:
        """Download one image. Returns the reason if that fails."""
        target = self._target(link)
        if target.is_file():
            return ""
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            request = urllib.request.Request(_quoted(link), headers={"User-Agent": "ofa_hf"})
            with urllib.request.urlopen(request, timeout=self.timeout) as response, part.open("wb") as file:
                self._copy(response, file)
            os.replace(part, target)
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code} {on_one_line(error.reason)}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            return _reason(error)
        finally:
            part.unlink(missing_ok=True)
        return ""

    def _copy(self, response: http.client.HTTPResponse, file) -> None:
        """Raises `ValueError` if the response is not an image, too large or incomplete."""
        kind, length = response.headers.get("Content-Type", ""), response.headers.get("Content-Length")
        if kind.lower().startswith(REFUSED_TYPES):
            raise ValueError(f"the server sent {kind.partition(';')[0]}, not an image")
        if packed := response.headers.get("Content-Encoding", "identity").lower().replace("identity", ""):
            raise ValueError(f"the server sent it packed with {on_one_line(packed)}, which was not asked for")
        size, end = 0, time.monotonic() + PATIENCE * self.timeout
        while chunk := response.read1(CHUNK):  # returns the available bytes, so that a slow server cannot block it
            size += len(chunk)
            if time.monotonic() > end:
                raise ValueError(f"only {size:,} bytes arrived in {PATIENCE * self.timeout:.0f} seconds")
            if size > self.limit:
                raise ValueError(f"it has more than {self.limit:,} bytes")
            if not file.tell() and chunk.lstrip()[:1] in (b"<", b"{"):
                raise ValueError(f"the server sent a text, {on_one_line(chunk[:40])}, not an image")
            file.write(chunk)
        if not size or (length and size != int(length)):
            raise ValueError(f"{size:,} of {length or 'some'} bytes arrived")


class LinkedFile(os.PathLike):
    """The image of a link, for `load_image`: fetched into a cache when it is read."""

    __slots__ = ("link", "cache")

    def __init__(self, link: str, cache: Path):
        self.link, self.cache = link, cache

    def __fspath__(self) -> str:
        return LinkedImages(self.cache).fetched(self.link)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinkedFile) and self.link == other.link

    def __hash__(self) -> int:
        return hash(self.link)


def _reason(error: Exception) -> str:
    """The error in words, without error numbers."""
    cause = getattr(error, "reason", None) or error
    return on_one_line(getattr(cause, "strerror", None) or cause) or type(error).__name__


def on_one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


def _once(links: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Each link once; only digests are remembered."""
    for link in links:
        digest = hashlib.sha1(link.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[:10]
        if digest not in seen:
            seen.add(digest)
            yield link


def _quoted(link: str) -> str:
    """A link with Chinese characters and spaces percent-encoded."""
    return quote(link, safe=":/?#[]@!$&'()*+,;=%~")
