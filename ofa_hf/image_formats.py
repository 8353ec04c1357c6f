"""Formats that Pillow reads with optional libraries: HEIC, JPEG XL, and AVIF where Pillow lacks it.

Files that travel may import none of them, so this one, which stays, loads them when an image asks.
"""

import importlib
from functools import lru_cache

from ofa_hf.image_loading_ofa import load_optional_readers


LIBRARIES = {
    "pillow_heif": "register_heif_opener",
    "pillow_jxl": None,
    "pillow_avif": None,
}  # None: importing registers


@lru_cache
def load_libraries() -> None:
    """Load the libraries that are there."""
    for name, register in LIBRARIES.items():
        try:
            library = importlib.import_module(name)
            if register:
                getattr(library, register)()
        except Exception:  # not installed, or built for another Pillow
            continue


def read_more_formats() -> None:
    """Let `load_image` load the libraries when it meets such an image."""
    if load_libraries not in load_optional_readers:
        load_optional_readers.append(load_libraries)
