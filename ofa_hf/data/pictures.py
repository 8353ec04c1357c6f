"""Pictures as rows hold them: as they came, `{"bytes", "path"}`; decoded by `load_picture` alone.

That function lives beside the model, so it is imported where a picture is decoded: a process that only moves pictures
around needs neither torch nor its memory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import PIL.Image


def stored_picture(value: Any) -> dict[str, Any] | None:
    """Bytes, a path or a stored picture as `{"bytes", "path"}`, one of them None; None if there is no picture."""
    if isinstance(value, (bytes, bytearray)):
        value = {"bytes": bytes(value)}
    elif isinstance(value, (str, Path)):
        value = {"path": str(value)}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        return None
    return {"bytes": value.get("bytes"), "path": None if value.get("bytes") else value.get("path")}


def open_picture(image: Any) -> "PIL.Image.Image":
    """Decode what a row holds: `{"bytes", "path"}` or anything `load_picture` takes.

    Raises:
        PictureError: it cannot be decoded.
    """
    from ofa_hf.image_processing_ofa import load_picture

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or b""
    return load_picture(image)


def why_broken(image: Any) -> str:
    """Decode a picture to see whether that works; the empty text if it does."""
    from ofa_hf.image_processing_ofa import PictureError

    try:
        open_picture(image)
    except PictureError as error:
        return str(error)
    return ""
