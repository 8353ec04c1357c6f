"""The arguments of a finetuning run: ours, the Trainer's own, and the names that older files use for either.

A run is described by a JSON file (the article's works as it is), by flags, or by both; flags win.
"""

import argparse
import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.utils import logging

from ofa_hf.errors import UserError


logger = logging.get_logger(__name__)

# Ready argument files that travel with the package, by the name that a user gives instead of a file.
RECIPES = {
    "article": "recipes/article.json",  # OFA-Chinese: encoder locked, word embedding trained
    "official": "recipes/official.json",  # the official COCO scripts: everything trained but the word embedding
}

# Old name → today's name, same meaning.
RENAMED = {
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "label_smoothing_factor": "label_smoothing",  # the Trainer's own doubles under accumulation in transformers 4
}
_TRAINER_NAMES = {item.name for item in dataclasses.fields(Seq2SeqTrainingArguments)}
_NEW, _OLD = "activation_checkpointing", "gradient_checkpointing"  # transformers 5 has both and warns of the old one
CHECKPOINTING = _NEW if _NEW in _TRAINER_NAMES else _OLD
RENAMED |= {name + end: CHECKPOINTING + end for name in {_NEW, _OLD} - {CHECKPOINTING} for end in ("", "_kwargs")}
RENAMED_FLAGS = {**RENAMED, "warmup_ratio": "warmup_steps"}
# Old names that ask for what happens anyway, or for what no longer exists and never changed a weight.
WITHOUT_EFFECT = frozenset(
    {
        "overwrite_output_dir",
        "logging_dir",
        "save_safetensors",
        "half_precision_backend",
        "fp16_backend",
        "fp16_opt_level",
        "use_legacy_prediction_loop",
        "include_inputs_for_metrics",
        "jit_mode_eval",
        "past_index",
        "tpu_num_cores",
        "tpu_metrics_debug",
        "torchdynamo",
        "ray_scope",
        "use_mps_device",
        "mp_parameters",
        "remove_unused_columns",  # always False: the columns are the collator's
        "logging_nan_inf_filter",  # always False: a loss that is no number must be seen
        "predict_with_generate",  # evaluation always captions
    }
)
ENCODER_DTYPES = ("float32", "bfloat16")
FILES_OR_DICTS = ("accelerator_config", "fsdp_config", "deepspeed")  # the Trainer would open a number as a file, too
DROP_PATH_RATES = ("encoder_drop_path_rate", "decoder_drop_path_rate", "resnet_drop_path_rate")

KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def _fits(value: Any, kind: type) -> bool:
    """Whether a value can stand for one of this kind: a switch is no number, a whole number is one."""
    if kind in (int, float):
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return is_number and abs(value) < 2**63  # false of NaN too
    return isinstance(value, (str, PathLike) if kind is str else kind)


@dataclass
class FinetuneArguments:
    """What a finetuning run trains on and what it trains. Names as in the OFA-Chinese article where it has one."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the converted model to start from."})
    train_caption_file: str | None = field(
        default=None, metadata={"help": "MUGE captions (IC_train.jsonl); or CSV / JSONL of a shop's own captions."}
    )
    train_image_file: str | None = field(
        default=None, metadata={"help": "MUGE images (IC_train.tsv); or the folder of a shop's own images."}
    )
    test_caption_file: str | None = field(default=None, metadata={"help": "Captions to evaluate on; never trained."})
    test_image_file: str | None = field(default=None, metadata={"help": "Images to evaluate on."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "A `datasets` data set instead of files: folder, parquet or Hub id."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of `dataset_name` to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split of `dataset_name` to evaluate on."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read `dataset_name` while training, and store and count nothing beforehand; needs max_steps."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column with the image, or its file name."})
    target_column: str = field(default="caption", metadata={"help": "Column with the target, or a list of them."})
    merge_test: bool = field(
        default=False,
        metadata={"help": "Train on the evaluation files too, as the article did; nothing is left to score."},
    )
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad line or image instead of counting."})
    max_seq_length: int = field(default=100, metadata={"help": "Longest caption in tokens; longer ones are cut."})
    targets_per_row: int = field(
        default=1,
        metadata={"help": "Targets of one row that share a pass through the encoder; batches count targets."},
    )
    freeze_encoder: bool = field(default=True, metadata={"help": "LiT: lock the encoder, train the decoder."})
    freeze_word_embed: bool = field(
        default=False, metadata={"help": "Lock the word embedding that encoder, decoder and output share."}
    )
    embed_gradient_through_encoder: bool = field(
        default=False,
        metadata={
            "help": "Train the word embedding through the locked encoder too, at the cost of its backward pass."
        },
    )
    cache_encoder_outputs: bool = field(
        default=False,
        metadata={
            "help": "Compute what the locked encoder makes of an image once, and keep it on disk: its outputs if the "
            "word embedding is locked too, else the ResNet's part. The size is told before training starts."
        },
    )
    encoder_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of that cache; runs may share it. Default: in output_dir."}
    )
    encoder_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of the locked encoder and its cache: float32 or bfloat16; default the run's."},
    )
    freeze_resnet: bool = field(default=False, metadata={"help": "Fix BatchNorm alone, as the official code does."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the target spread over the vocabulary."})
    drop_worst_ratio: float = field(
        default=0.0, metadata={"help": "Share of tokens, the worst, left out of the loss."}
    )
    drop_worst_after: int = field(default=0, metadata={"help": "Updates to do before `drop_worst_ratio` sets in."})
    ignore_prefix_size: int = field(default=0, metadata={"help": "First caption tokens that the loss leaves out."})
    ignore_eos: bool = field(default=False, metadata={"help": "Leave </s> out of the loss."})
    encoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "Stochastic depth of the last encoder layer."}
    )
    decoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "Stochastic depth of the last decoder layer."}
    )
    resnet_drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth within each ResNet stage."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout; the checkpoint's by default."})
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "Weight decay reaches biases and LayerNorm too, as in the official code."}
    )
    adam_epsilon_as_fairseq: bool = field(
        default=False, metadata={"help": "AdamW whose epsilon is divided by √(1 − β₂ᵗ), as in the official code."}
    )
    eval_rows: int = field(default=1000, metadata={"help": "Rows to predict at each evaluation; 0 = all."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Evaluations without a better score after which training stops; 0 = never."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters (needs peft); 0 = train the weights."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the LoRA adapters."})
    merge_lora: bool = field(default=True, metadata={"help": "Save one merged model; False saves the adapter alone."})
    num_proc: int = field(default=1, metadata={"help": "Processes that read the data files."})

    def __post_init__(self):
        for name, kind in get_type_hints(FinetuneArguments).items():  # a JSON file may hold anything
            kinds = get_args(kind) or (kind,)
            if not any(_fits(getattr(self, name), each) for each in kinds):
                accepted = " or ".join(KINDS[each] for each in kinds)
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {accepted}.")
        pairs = (("train", self.train_caption_file, self.train_image_file),)
        pairs += (("test", self.test_caption_file, self.test_image_file),)
        for name, captions, images in pairs:
            if (captions is None) != (images is None):
                missing = f"{name}_image_file" if images is None else f"{name}_caption_file"
                raise UserError(f"{missing} is missing: captions and images come in pairs. Give both or neither.")
        if (self.train_caption_file is None) == (self.dataset_name is None):
            raise UserError(
                "A run trains on files or a data set. Give train_caption_file and train_image_file, or dataset_name."
            )
        for name, lowest in (("targets_per_row", 1), ("max_seq_length", 2), ("num_proc", 1), ("lora_rank", 0)):
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.encoder_dtype not in (None, *ENCODER_DTYPES):
            raise UserError(f"encoder_dtype is {self.encoder_dtype}; it must be one of {', '.join(ENCODER_DTYPES)}.")
        for name in ("label_smoothing", "drop_worst_ratio", "dropout", *DROP_PATH_RATES):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")


def parse_arguments(
    json_file: str | Path | None, flags: Sequence[str] = ()
) -> tuple[FinetuneArguments, Seq2SeqTrainingArguments]:
    """Arguments of a run from a JSON file, from flags, or from both.

    Args:
        json_file: a JSON object of names and values; or a name in `RECIPES`.
        flags: `--name value` or `--name-with-dashes value`; they win over the file.

    Raises:
        UserError: a file that is no JSON object, a name that neither we nor the Trainer know, or a bad value.
        SystemExit: 2 after a flag that argparse cannot read, 0 after `--help`.
    """
    parser = HfArgumentParser(
        (FinetuneArguments, Seq2SeqTrainingArguments),
        prog="ofa-hf finetune",
        usage=f"ofa-hf finetune [ARGS.json | {' | '.join(RECIPES)}] [--name value …] [--json]",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    values = _typed(parser, _translate(_read_json(json_file))) if json_file else {}
    values.update(_translate(_parse_flags(parser, _old_flags(flags))))
    known = {item.name for kind in parser.dataclass_types for item in dataclasses.fields(kind) if item.init}
    _refuse_unknown(values.keys() - known, known, json_file)
    for name in ("model_name_or_path", "output_dir"):
        if name not in values:
            raise UserError(f"{name} is missing. Give it in the JSON file or as --{name}.")
    for name in FILES_OR_DICTS:
        if not isinstance(values.get(name), (str, PathLike, dict, type(None))):
            raise UserError(f"{name} is {values[name]!r}; it must be the name of a JSON file, or what would be in it.")
    # What transformers would choose otherwise: whatever is installed (version 4), the evaluation loss, and no loss at
    # all in the log of a run that is shorter than its logging interval.
    defaults = {"report_to": "none", "metric_for_best_model": "cider_d", "logging_first_step": True}
    fixed = {"remove_unused_columns": False, "logging_nan_inf_filter": False}
    try:
        ours, trainers = parser.parse_dict({**defaults, **values, **fixed})
    # transformers looks at few types
    except (ValueError, TypeError, AttributeError, ImportError, OSError, OverflowError) as error:
        raise UserError(f"The arguments do not go together: {error}") from error
    return ours, trainers


def _read_json(json_file: str | Path) -> dict[str, Any]:
    path = Path(__file__).parent / RECIPES[str(json_file)] if str(json_file) in RECIPES else Path(json_file)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"Cannot read the arguments file {json_file}: {error.strerror}. Give the path of a JSON file, or a ready "
            f"recipe by its name: {', '.join(RECIPES)}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_file} is not JSON: {error}. It must hold one object of names and values.") from error
    if not isinstance(values, dict):
        raise UserError(f"{json_file} holds a {type(values).__name__}; it must hold one object of names and values.")
    return values


def _typed(parser: HfArgumentParser, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a JSON file as numbers and switches where they were written as text, as a flag's would be."""
    types, typed = {action.dest: action.type for action in parser._actions if action.type}, dict(values)
    for name, value in values.items():
        kind = types.get(name)
        is_wrong = kind in (int, float) and value is not None and not isinstance(value, (int, float))
        if not is_wrong and not (isinstance(value, str) and callable(kind)):
            continue
        try:
            typed[name] = kind(value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            wanted = "a number" if kind in (int, float) else "another kind of value"
            raise UserError(
                f"{name} is {value!r}; it must be {wanted}. `ofa-hf finetune --help` tells more."
            ) from error
    return typed


def _old_flags(flags: Sequence[str]) -> list[str]:
    """Flags under today's names, so that argparse knows them; those without effect are taken out with a word."""
    result, position = [], 0
    flags = list(flags)
    while position < len(flags):
        name, _, value = flags[position].partition("=")
        plain = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and plain in WITHOUT_EFFECT:
            logger.warning(f"{name} has no effect here and is left out.")
            if not value and position + 1 < len(flags) and not flags[position + 1].startswith("--"):
                position += 1
        elif name.startswith("--") and plain in RENAMED_FLAGS:
            result.append(f"--{RENAMED_FLAGS[plain]}" + (f"={value}" if value else ""))
        else:
            result.append(flags[position])
        position += 1
    return result


def _parse_flags(parser: HfArgumentParser, flags: list[str]) -> dict[str, Any]:
    """Only what the flags say, no defaults. Unknown ones are kept under their name, to be refused with a hint."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            action.default, action.required = argparse.SUPPRESS, False
        if action.dest == "warmup_steps":
            action.type = float  # a share of all steps too, on transformers 4 as on 5
    values, others = parser.parse_known_args(flags)
    stray = next((word for word in others if not word.startswith("-")), None)
    names = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in others if word.startswith("-")]
    if stray and not names:
        parser.error(f"cannot tell what {stray!r} is for; flags are --name value")
    return {**vars(values), **dict.fromkeys(names)}


def _translate(values: dict[str, Any]) -> dict[str, Any]:
    """Names of older files and transformers versions as today's, on both versions."""
    translated = _warmup(values)
    for name, value in values.items():
        if name in WITHOUT_EFFECT:
            logger.warning(f"{name} has no effect here and is left out.")
        elif name == "adafactor":
            translated.update({"optim": "adafactor"} if value else {})
        elif name == "group_by_length":
            logger.warning("group_by_length is left out: captions are short, and batches share images instead.")
        elif name not in ("warmup_ratio", "warmup_steps"):
            translated[RENAMED.get(name, name)] = value
    return translated


def _warmup(values: dict[str, Any]) -> dict[str, Any]:
    """Warm-up steps, or below 1 a share of all steps: transformers 4 has a name for each, transformers 5 one."""
    given = [_number(name, values[name]) for name in ("warmup_steps", "warmup_ratio") if values.get(name) is not None]
    if not given:
        return {}
    value = next(filter(None, given), 0.0)
    if value >= 1:
        return {"warmup_steps": int(value)}
    return {"warmup_ratio": value, "warmup_steps": 0} if "warmup_ratio" in _TRAINER_NAMES else {"warmup_steps": value}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} is {value!r}; it must be a number. `ofa-hf finetune --help` tells more.")
    return number


def _refuse_unknown(unknown: set[str], known: set[str], source: str | Path | None) -> None:
    if not unknown:
        return
    name = sorted(unknown)[0]
    close = difflib.get_close_matches(name, known, n=1)
    more = f" (+{len(unknown) - 1} more)" if len(unknown) > 1 else ""
    hint = f"Did you mean {close[0]}?" if close else "`ofa-hf finetune --help` lists the names."
    raise UserError(f"Unknown argument {name}{more} in {source or 'the flags'}. {hint}")
