"""Images as rows store them, `{"bytes", "path"}`; only `load_image` decodes them.

`load_image` is a hub file and is imported where an image is decoded, so that a process that only moves images around
does not load torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import PIL.Image


def stored_image(value: Any) -> dict[str, Any] | None:
    """Convert bytes, a path or a stored image to `{"bytes", "path"}`, one of them None. None if there is no image."""
    if isinstance(value, (bytes, bytearray)):
        value = {"bytes": bytes(value)}
    elif isinstance(value, (str, Path)):
        value = {"path": str(value)}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        return None
    return {"bytes": value.get("bytes"), "path": None if value.get("bytes") else value.get("path")}


def open_image(image: Any) -> "PIL.Image.Image":
    """Decode `{"bytes", "path"}` or anything else that `load_image` accepts.

    Raises:
        ImageError: it cannot be decoded.
    """
    from ofa_hf.image_processing_ofa import load_image

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or b""
    return load_image(image)


def why_broken(image: Any) -> str:
    """Try to decode an image. Returns the reason for a failure, or the empty string."""
    from ofa_hf.image_processing_ofa import ImageError

    try:
        open_image(image)
    except ImageError as error:
        return str(error)
    return ""
