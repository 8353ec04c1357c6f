"""Load a model and its processor from a Hub-ready folder or a Hub id; refuse incomplete ones and bad devices."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageToTextPipeline, OFAProcessor
from ofa_hf.errors import UserError
from ofa_hf.files import refuse_pointer
from ofa_hf.image_formats import read_more_formats
from ofa_hf.tasks_ofa import Task, checkpoint_task, upgrade_config
from ofa_hf.versions_ofa import mismatched_names


read_more_formats()

ADVICE = "Pass a folder written by `ofa-hf convert` or `ofa-hf finetune`, or a Hub id of one."


class LoadedModel(NamedTuple):
    """A model in inference mode, and its processor."""

    model: OFAForConditionalGeneration
    processor: OFAProcessor


class Tasks(NamedTuple):
    """The tasks of a checkpoint by name, its default task, and the language of its prompts."""

    tasks: dict[str, Task]
    default: str
    language: str


def check_model(name: str | os.PathLike) -> None:
    """Check that a folder or Hub id is an OFA model; only its `config.json` is read.

    Raises:
        UserError: there is no such model, its configuration cannot be read, it is another kind of model, or its
            large files are pointers of Git LFS.
    """
    name = os.fspath(name)
    if not os.path.isdir(name) and name.count("/") != 1:  # Hub ids are `owner/name`
        raise UserError(f"The model {name} is neither a folder on this machine nor a Hub id (owner/name). {ADVICE}")
    if os.path.isdir(name):
        for file in (*Path(name).glob("*.safetensors"), *Path(name).glob("tokenizer.json")):
            refuse_pointer(file)
    with explain_failure(f"The model {name}"):
        model_type = OFAConfig.get_config_dict(name)[0].get("model_type")
    if model_type != "ofa":
        found = f"its config.json says model_type={model_type!r}" if model_type else "it has no config.json"
        raise UserError(f"The model {name} is not OFA: {found}. {ADVICE}")


def load_processor(name: str | os.PathLike) -> OFAProcessor:
    """Load a model's processor.

    Raises:
        UserError: there is no such model, it is not OFA, or its processor files are incomplete.
    """
    check_model(name)
    with explain_failure(f"The processor of {os.fspath(name)}"):
        processor = OFAProcessor.from_pretrained(name)
    # what transformers returns if the file is missing
    if len(processor.tokenizer) <= len(processor.tokenizer.all_special_tokens):
        raise UserError(
            f"The tokenizer of {os.fspath(name)} has only special tokens. The folder lacks "
            f"tokenizer.json, or it is empty. Convert the checkpoint again, or download it again."
        )
    return processor


def read_tasks(name: str | os.PathLike) -> Tasks:
    """What a model can be asked; only its configurations are read.

    Raises:
        UserError: there is no such model, it is not OFA, or it does not say what it was trained for.
    """
    check_model(name)
    with explain_failure(f"The processor of {os.fspath(name)}"):
        config = upgrade_config(OFAProcessor.get_processor_dict(name)[0])
        language = config.get("language", "zh")
        tasks = {task: checkpoint_task(task, settings, language) for task, settings in config["tasks"].items()}
        return Tasks(tasks, config.get("default_task") or next(iter(tasks)), language)


def load_model(
    name: str | os.PathLike, *, device: str | None = None, dtype: str | torch.dtype = "auto", **config_overrides
) -> LoadedModel:
    """Load a model with this package's code, in inference mode, and its processor.

    Args:
        name: a Hub-ready folder or a Hub id.
        device: as PyTorch names it; by default the first of cuda, mps and cpu that this machine has.
        dtype: a torch dtype or its name; "auto" keeps the stored one.
        config_overrides: fields of `OFAConfig`, such as `dropout=0.1`.

    Raises:
        UserError: there is no such model or device, the model is not OFA, or its weights do not match its
            `config.json`.
    """
    device = check_device(device)
    processor = load_processor(name)
    with explain_failure(f"The model {os.fspath(name)}"):
        model, report = OFAForConditionalGeneration.from_pretrained(
            name,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **config_overrides,
        )
        _check_weights(os.fspath(name), model, report)
        _check_numbers(os.fspath(name), model)
        return LoadedModel(model.to(device).eval(), processor)


def load_pipeline(
    name: str | os.PathLike, *, device: str | None = None, dtype: str | torch.dtype = "auto"
) -> OFAImageToTextPipeline:
    """Load a model as a pipeline; arguments and errors are those of `load_model`."""
    model, processor = load_model(name, device=device, dtype=dtype)
    return OFAImageToTextPipeline(model=model, processor=processor, device=model.device)


def check_device(device: str | None) -> torch.device:
    """The device of this name, after allocating on it; by default the first of cuda, mps and cpu that exists.

    Raises:
        UserError: there is no such device, or it does not work.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:100]
        raise UserError(
            f"The device {device!r} cannot be used ({reason}). Accepted: cpu, cuda, cuda:1 and so on, mps. Leave it "
            f"out to use the fastest device of this machine."
        ) from error


def _check_weights(name: str, model: OFAForConditionalGeneration, report: dict) -> None:
    """Refuse weights that are missing, of another shape, unknown, or left on the meta device (read from no file)."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    empty = {key for key, tensor in tensors if tensor.is_meta}
    wrong = {
        "missing": empty.union(report["missing_keys"]),
        "of another shape": set(mismatched_names(report)),
        "unknown": set(report["unexpected_keys"]),
    }
    seen = [f"{_some(keys)} {'is' if len(keys) == 1 else 'are'} {what}" for what, keys in wrong.items() if keys]
    if seen:
        raise UserError(
            f"The weights of {name} do not match its config.json: {'; '.join(seen)}. Expected: exactly the weights of "
            f"the network that config.json describes. Convert the checkpoint again, or download it again."
        )


def _check_numbers(name: str, model: OFAForConditionalGeneration) -> None:
    """Refuse weights that contain NaN, with which all answers would be empty."""
    plain = [(key, tensor) for key, tensor in model.named_parameters() if type(tensor) is torch.nn.Parameter]
    broken = {key for key, tensor in plain if tensor.is_floating_point() and _is_broken(tensor.detach())}
    if broken:
        raise UserError(
            f"The weights of {name} contain NaN: {_some(broken)}. Its training diverged, or the file was "
            f"damaged. Use an earlier checkpoint, or train again with a lower learning rate."
        )


def _is_broken(tensor: torch.Tensor) -> bool:
    return not math.isfinite(tensor.sum(dtype=torch.float32)) and bool(tensor.isnan().any())


def _some(keys: set[str], shown: int = 3) -> str:
    first = sorted(keys)[:shown]
    return ", ".join(first) + (f" (+{len(keys) - shown})" if len(keys) > shown else "")


@contextmanager
def explain_failure(what: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn any failure to load into a one-line `UserError`, without transformers' own report and progress bar."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise anything from OSError to bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise UserError(f"{what} cannot be loaded ({reason}). {advice}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
