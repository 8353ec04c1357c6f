"""Print which libraries a test run uses, and stop it when they are not the ones it is for.

Usage: python tests/print_versions.py MAJOR, the major version of transformers that must come first on the path.
"""

import platform
import sys
from importlib.metadata import version


LIBRARIES = "torch torchvision transformers tokenizers huggingface_hub datasets accelerate pillow".split()


def main(expected_major: str) -> str | None:
    print("Python", platform.python_version(), *(f"· {name} {version(name)}" for name in LIBRARIES), flush=True)
    found = version("transformers")
    if found.split(".")[0] != expected_major:
        return f"This run is for transformers {expected_major}.x but {found} comes first on the path: {sys.path}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
