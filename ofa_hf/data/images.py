"""Images as rows store them, `{"bytes", "path"}`, which `load_image` decodes."""

from pathlib import Path
from typing import Any

from ofa_hf.image_loading_ofa import ImageError, load_image


def stored_image(value: Any) -> dict[str, Any] | None:
    """Convert bytes, a path or a stored image to `{"bytes", "path"}`, one of them None; None if there is no image."""
    if isinstance(value, (bytes, bytearray)):
        value = {"bytes": bytes(value)}
    elif isinstance(value, (str, Path)):
        value = {"path": str(value)}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        return None
    return {"bytes": value.get("bytes"), "path": None if value.get("bytes") else value.get("path")}


def measure(image: Any) -> tuple[tuple[int, int] | None, str]:
    """Try to decode an image. Returns `(width, height)` and the empty string, or None and the reason."""
    try:
        return load_image(image).size, ""
    except ImageError as error:
        return None, str(error)


def why_broken(image: Any) -> str:
    """Try to decode an image. Returns the reason for a failure, or the empty string."""
    return measure(image)[1]
