"""What both exports share: required libraries, the output folder, and its report."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.files import NewFolder, new_folder, write_json
from ofa_hf.models import LoadedModel, read_tasks


EXPORT_FILE = "export.json"


@dataclass
class Export:
    """The report of an export; `values` is the content of `export.json`."""

    folder: Path
    values: dict[str, Any]
    lines: list[str]


def need_libraries(extra: str, *names: str) -> None:
    """Raises `UserError` unless all of these can be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"This export needs {', '.join(names)}, but {', '.join(missing)} cannot be imported. "
            f"Install the extra: pip install 'ofa-hf[{extra}]'."
        )


def refuse_quantized(captioner: LoadedModel, model: str) -> None:
    """Raises `UserError` if the weights are quantized already."""
    if getattr(captioner.model.config, "quantization_config", None):
        raise UserError(f"The weights of {model} are quantized already. Pass the folder it was made from.")


def refuse_drawer(model: str, as_default_only: bool = False) -> None:
    """Raises `UserError` if a model draws images; only its configurations are read.

    Args:
        as_default_only: refuse only if the default task draws; other tasks that draw are left out.
    """
    tasks, default, _ = read_tasks(model)
    named = [default] if as_default_only else list(tasks)
    if drawing := [name for name in named if tasks[name].answer == "image"]:
        raise UserError(
            f"The model {model} draws images (task {', '.join(drawing)}), and exports are for models that answer with "
            f"texts or boxes. Use it as it is, with transformers or `ofa-hf draw`."
        )


@contextmanager
def new_export(out: str | Path) -> Iterator[NewFolder]:
    """A folder to fill and one for temporary files; the first is moved to `out` at the end.

    Raises:
        UserError: `out` holds something.
    """
    target = Path(out).absolute()
    full_disk = explain_full_disk(target.parent, "No partial files were kept. Free some space and export again.")
    with full_disk, new_folder(target) as new:
        yield new


def source_name(model: str) -> str:
    """The name of a model without local paths: only the last part of a folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def write_facts(folder: Path, values: Mapping[str, Any]) -> None:
    write_json(folder / EXPORT_FILE, values)
