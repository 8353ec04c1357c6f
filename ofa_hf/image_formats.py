"""Formats that Pillow reads with optional libraries: HEIC, JPEG XL, and AVIF where Pillow lacks it.

Hub files must not import these libraries, so this file loads them when an image needs one.
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
    """Load the libraries that are installed."""
    for name, register in LIBRARIES.items():
        try:
            library = importlib.import_module(name)
            if register:
                getattr(library, register)()
        except Exception:  # not installed, or built for another Pillow
            continue


def read_more_formats() -> None:
    """Make `load_image` load the libraries when it reads such an image."""
    if load_libraries not in load_optional_readers:
        load_optional_readers.append(load_libraries)
