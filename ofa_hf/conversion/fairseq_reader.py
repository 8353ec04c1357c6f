"""Find settings and weights in an official fairseq `.pt` or a legacy OFA-Chinese `pytorch_model.bin`, safely.

Official file: a dictionary with `args` (an `argparse.Namespace`, or None), `cfg` (None, or a nested configuration
whose `model` holds the same), `model` (the weights) and training states, which are recognized and never read.
Legacy file: only the weights.

Source: fairseq `checkpoint_utils.py`, `trainer.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_hf.conversion.torch_file import FileRefused, StoredTensor, TorchFile
from ofa_hf.errors import UserError
from ofa_hf.inert_pickle import Inert, PickleRefused, shown


# Classes that official files can contain. They are recorded by name and never imported, so the list implies no trust
# in these packages.
INERT_NAMES = frozenset(
    "argparse.Namespace collections.OrderedDict collections.defaultdict collections.Counter "
    "builtins.dict builtins.list builtins.tuple builtins.set builtins.frozenset builtins.object builtins.str "
    "builtins.long builtins.unicode "
    "builtins.int builtins.float builtins.bool builtins.bytes builtins.complex builtins.bytearray builtins.slice "
    "copyreg._reconstructor _codecs.encode operator.getitem "
    "typing.Any typing.Union typing.Optional typing.List typing.Dict typing.Tuple "
    "torch.Size torch.device torch.float16 torch.float32 torch.float64 torch.bfloat16 torch.int64 "
    "numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct "
    "numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy.float64 numpy.float32 numpy.int64 "
    "pathlib.PosixPath pathlib.PurePosixPath".split()
)
INERT_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"omegaconf\.(dictconfig|listconfig|nodes|base)\.[A-Za-z]+",
        r"fairseq\.dataclass\.(configs|constants|utils)\.[A-Za-z0-9_]+",
        r"fairseq\.logging\.meters\.[A-Za-z]+",
        r"(fairseq|ofa_module|models|tasks|criterions|optim)\.[a-z0-9_.]+\.[A-Za-z0-9]+Config",
    )
)
WRAPPER_FIELDS = {"DictConfig": "_content", "ListConfig": "_content"}
MAX_WRAPPERS = 8  # classes that wrap a single value


@dataclass
class SourceCheckpoint:
    """The content of a checkpoint file: settings as plain values; weights are still in the file."""

    path: Path
    layout: str  # "zip" or "legacy", how torch.save wrote it
    settings: dict[str, Any]  # names of fairseq's arguments → str, int, float, bool or None; empty in legacy files
    weights: dict[str, StoredTensor]
    ignored: list[str]  # top-level entries used only in training


def is_inert(name: str) -> bool:
    """Whether official checkpoints contain objects of this class."""
    return name in INERT_NAMES or any(pattern.fullmatch(name) for pattern in INERT_PATTERNS)


def read_checkpoint(path: str | Path) -> SourceCheckpoint:
    """Read the settings and the directory of weights of an official `.pt` or a legacy `.bin`; executes nothing.

    Raises:
        UserError: the file is missing, truncated, damaged, hostile, or no checkpoint of a network.
    """
    path = Path(path)
    try:
        file = TorchFile(path, is_inert)
        return sort_content(path, file)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"No checkpoint file at {path}. Pass an official .pt file or a legacy folder.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error
    except (FileRefused, PickleRefused) as error:
        raise UserError(f"{path} cannot be converted: {error}.") from error


def sort_content(path: Path, file: TorchFile) -> SourceCheckpoint:
    """Take settings and weights from an official checkpoint, or the weights of a legacy file."""
    content = file.content
    if not isinstance(content, dict):
        raise FileRefused(f"it holds {shown(content)} where a dictionary of weights is expected")
    if isinstance(content.get("model"), dict):
        ignored = [shown(key) for key in content if key not in ("args", "cfg", "model")]
        return SourceCheckpoint(path, file.layout, read_settings(content), check_weights(content["model"]), ignored)
    return SourceCheckpoint(path, file.layout, {}, check_weights(content), [])


def check_weights(weights: dict) -> dict[str, StoredTensor]:
    """Check that every entry of a dictionary is a named tensor."""
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            keys = ", ".join(shown(key) for key in list(weights)[:5])
            raise FileRefused(
                f"it is not an OFA checkpoint: it holds {keys}, expected weights by name or an entry 'model'"
            )
    if not weights:
        raise FileRefused("it contains no weights")
    return weights


def read_settings(content: dict) -> dict[str, Any]:
    """fairseq's arguments as one flat dictionary: from `args`, or from `cfg.task` and then `cfg.model`."""
    arguments = fields_of(content.get("args"))
    if arguments:
        return plain_values(arguments)
    sections = fields_of(content.get("cfg"))
    task, model = plain_values(fields_of(sections.get("task"))), plain_values(fields_of(sections.get("model")))
    if "_name" in task:
        task["task"] = task["_name"]
    if "_name" in model:
        model.setdefault("arch", model["_name"])
    return {**task, **model}


def fields_of(value: Any) -> Mapping:
    """Fields of a dictionary, a Namespace, a DictConfig or a configuration dataclass, still wrapped."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(value, Inert):
            break
        attributes = value.attributes()
        value = attributes.get(WRAPPER_FIELDS.get(value.name.rpartition(".")[2]), attributes)
        if value is attributes:
            break
    return value if isinstance(value, dict) else {}


def plain_values(fields: Mapping) -> dict[str, Any]:
    """Fields with a name and a single value; lists and nested sections are left out."""
    values = {name: unboxed(value) for name, value in fields.items() if isinstance(name, str)}
    return {name: value for name, value in values.items() if value is None or isinstance(value, (str, int, float))}


def unboxed(value: Any) -> Any:
    """The value inside a configuration node (`_val`) or an enumeration member (its only argument)."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(value, Inert):
            break
        value = value.attributes().get("_val", value.arguments[0] if len(value.arguments) == 1 else ())
    return value
