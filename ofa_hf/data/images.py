"""Images as rows hold them: as they came, `{"bytes", "path"}`; decoded by `load_image` alone.

That function lives beside the model, so it is imported where an image is decoded: a process that only moves images
around needs neither torch nor its memory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import PIL.Image


def stored_image(value: Any) -> dict[str, Any] | None:
    """Bytes, a path or a stored image as `{"bytes", "path"}`, one of them None; None if there is no image."""
    if isinstance(value, (bytes, bytearray)):
        value = {"bytes": bytes(value)}
    elif isinstance(value, (str, Path)):
        value = {"path": str(value)}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        return None
    return {"bytes": value.get("bytes"), "path": None if value.get("bytes") else value.get("path")}


def open_image(image: Any) -> "PIL.Image.Image":
    """Decode what a row holds: `{"bytes", "path"}` or anything `load_image` takes.

    Raises:
        ImageError: it cannot be decoded.
    """
    from ofa_hf.image_processing_ofa import load_image

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or b""
    return load_image(image)


def why_broken(image: Any) -> str:
    """Decode an image to see whether that works; the empty text if it does."""
    from ofa_hf.image_processing_ofa import ImageError

    try:
        open_image(image)
    except ImageError as error:
        return str(error)
    return ""
