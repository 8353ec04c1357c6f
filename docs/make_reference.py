"""Write the API reference, HTML made from the docstrings by pdoc: `make docs`.

python docs/make_reference.py [outputs/reference]
"""

import sys
from importlib import import_module
from pathlib import Path

import pdoc


MODULES = ["ofa_hf", *(f"ofa_hf.{name}" for name in ("captioning", "conversion", "data", "evaluation", "export"))]
MODULES += ["ofa_hf.publishing", "ofa_hf.training"]


def load_public_names() -> None:
    """Our packages load their public names when these are first used, and pdoc looks only at what is there."""
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
