"""Write the API reference, HTML made from the docstrings by pdoc: `make docs`.

python docs/make_reference.py [outputs/reference]
"""

import sys
from importlib import import_module
from pathlib import Path

import pdoc


PACKAGES = ("conversion", "data", "evaluation", "export", "models", "prediction", "publishing", "training")
MODULES = ["ofa_hf", *(f"ofa_hf.{name}" for name in PACKAGES)]


def load_public_names() -> None:
    """Load the public names, which our packages load only when they are first used: pdoc does not see others."""
    for name in MODULES:
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            setattr(module, public, getattr(module, public))


def main(folder: str = "outputs/reference") -> None:
    load_public_names()
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=Path(folder))
    sys.stdout.write(f"{Path(folder) / 'index.html'}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
