"""Arguments of a finetuning run: ours, those of the Trainer, and older names of both.

A run is described by a JSON file (that of the article works unchanged), by flags, or by both; flags take precedence.
"""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.utils import logging

from ofa_hf.errors import UserError
from ofa_hf.files import read_json


logger = logging.get_logger(__name__)

# Argument files in this package, by their names on the command line.
RECIPES = {
    "article": "recipes/article.json",  # OFA-Chinese: encoder locked, word embedding trained
    "official": "recipes/official.json",  # the official COCO scripts: everything trained except the word embedding
}
TASK_METRIC = "task_metric"  # value of metric_for_best_model: the metric of the task

# Old name → current name with the same meaning.
RENAMED = {
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "caption_column": "target_column",
    "label_smoothing_factor": "label_smoothing",  # the Trainer's own doubles under accumulation in transformers 4
}
_TRAINER_NAMES = {item.name for item in dataclasses.fields(Seq2SeqTrainingArguments)}
_NEW, _OLD = "activation_checkpointing", "gradient_checkpointing"  # transformers 5 has both; the old one is deprecated
CHECKPOINTING = _NEW if _NEW in _TRAINER_NAMES else _OLD
RENAMED |= {name + end: CHECKPOINTING + end for name in {_NEW, _OLD} - {CHECKPOINTING} for end in ("", "_kwargs")}
RENAMED_FLAGS = {**RENAMED, "warmup_ratio": "warmup_steps"}
# Old names without effect: they request the default behavior, or features that never changed a weight.
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
        "remove_unused_columns",  # always False: the collator needs the columns
        "logging_nan_inf_filter",  # always False: a loss of NaN or inf must be seen
        "predict_with_generate",  # evaluation always generates
    }
)
ENCODER_DTYPES = ("float32", "bfloat16")
FILES_OR_DICTS = ("accelerator_config", "fsdp_config", "deepspeed")  # the Trainer would open a number as a file
DROP_PATH_RATES = ("encoder_drop_path_rate", "decoder_drop_path_rate", "resnet_drop_path_rate")

# Arguments that can be set for each task of a run with several tasks.
PER_TASK = frozenset(
    "weight train_caption_file train_image_file test_caption_file test_image_file dataset_name dataset_split "
    "eval_split image_column target_column id_column confidence_column more_fields choices_file data_format "
    "selected_cols".split()
)
KINDS = {
    dict: "an object",
    list[str]: "a list of strings",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _fits(value: Any, kind: type) -> bool:
    """Whether a value has this type. A boolean is not a number; an integer is accepted as a float."""
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if kind in (int, float):
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return is_number and abs(value) < 2**63  # false of NaN too
    return isinstance(value, (str, PathLike) if kind is str else kind)


@dataclass
class FinetuneArguments:
    """What a finetuning run trains, and on which data. Names follow the OFA-Chinese article where it has them."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of the model to start from."})
    task: str | None = field(
        default=None, metadata={"help": "Task to train, such as caption. Default: the default task of the model."}
    )
    tasks: dict | str | None = field(
        default=None,
        metadata={
            "help": "Several tasks: an object of task → its `weight` and its own data arguments (in a JSON file), or "
            "the path of a JSON file that holds it. Data arguments outside apply to all."
        },
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the table to learn; each becomes a question with its name."}
    )
    closed_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns whose values are a closed list. Default: those with few, often repeated values."},
    )
    train_caption_file: str | None = field(
        default=None,
        metadata={"help": "MUGE captions (IC_train.jsonl), a table (CSV, JSON, xlsx, …), or an official TSV."},
    )
    train_image_file: str | None = field(
        default=None,
        metadata={"help": "MUGE images (IC_train.tsv), or the folder of the images that the table names."},
    )
    test_caption_file: str | None = field(default=None, metadata={"help": "Like train_caption_file, for evaluation."})
    test_image_file: str | None = field(default=None, metadata={"help": "Like train_image_file, for evaluation."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set of the `datasets` library, instead of files: folder or Hub id."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of `dataset_name` to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split of `dataset_name` to evaluate on."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read `dataset_name` during training instead of preparing it first; needs max_steps."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of images or of their file names. Default: one with a common name."}
    )
    target_column: str | None = field(
        default=None,
        metadata={"help": "Column of targets or lists of targets; also --caption_column. Default: that of the task."},
    )
    confidence_column: str | None = field(
        default=None, metadata={"help": "Column with the confidence of a target, 0 to 1, which scales its loss."}
    )
    more_fields: list[str] | None = field(
        default=None, metadata={"help": "Columns for the longer prompt of the task, such as objects for vqa."}
    )
    choices_file: str | None = field(
        default=None,
        metadata={"help": "File of answers to choose from, one per line. Default: those of the task, or of the data."},
    )
    data_format: str | None = field(
        default=None, metadata={"help": "official: files of the official code (TSV without header, with the images)."}
    )
    selected_cols: str | None = field(
        default=None, metadata={"help": "Columns of an official file, as in the official scripts, such as 0,4,2."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column of row ids; rows with the same id are joined into one."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the tables, such as gb18030. Default: detected."}
    )
    separator: str | None = field(
        default=None, metadata={"help": "Character between the cells of a table, or tab. Default: detected."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for prepared, downloaded and unpacked data. Default: that of `datasets`."},
    )
    merge_test: bool = field(
        default=False,
        metadata={"help": "Also train on the evaluation files, as in the article; there is then no evaluation."},
    )
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad line or image instead of skipping."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Size in pixels of images to draw, a multiple of 8. Default: that of the model."},
    )
    sample_codes: bool = field(
        default=False,
        metadata={
            "help": "Sample the codes of training images, as in the official code, instead of taking the best ones."
        },
    )
    max_seq_length: int = field(default=100, metadata={"help": "Maximum tokens of a target; longer ones are cut."})
    targets_per_row: int = field(
        default=1,
        metadata={"help": "Targets of one row that share a pass through the encoder. Batch sizes count targets."},
    )
    freeze_encoder: bool | None = field(
        default=None,
        metadata={"help": "LiT: lock the encoder and train the decoder. Default: true; false for drawing."},
    )
    freeze_word_embed: bool = field(
        default=False, metadata={"help": "Lock the word embedding that encoder, decoder and output share."}
    )
    embed_gradient_through_encoder: bool = field(
        default=False,
        metadata={
            "help": "Also train the word embedding through the locked encoder; costs the encoder's backward pass."
        },
    )
    cache_encoder_outputs: bool = field(
        default=False,
        metadata={
            "help": "Run the locked encoder once per image and keep the result on disk: the encoder's outputs if "
            "the word embedding is locked too, otherwise the ResNet's. The size is printed before training."
        },
    )
    encoder_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the encoder cache, which runs can share. Default: in output_dir."}
    )
    encoder_dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of the locked encoder and its cache: float32 or bfloat16. Default: the run's."},
    )
    freeze_resnet: bool = field(default=False, metadata={"help": "Fix only BatchNorm, as the official code does."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Probability mass spread over the vocabulary."})
    drop_worst_ratio: float = field(
        default=0.0, metadata={"help": "Share of tokens with the highest loss to leave out."}
    )
    drop_worst_after: int = field(default=0, metadata={"help": "Updates before `drop_worst_ratio` takes effect."})
    ignore_prefix_size: int = field(default=0, metadata={"help": "First target tokens that the loss ignores."})
    ignore_eos: bool = field(default=False, metadata={"help": "Ignore </s> in the loss."})
    encoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "Stochastic depth of the last encoder layer."}
    )
    decoder_drop_path_rate: float = field(
        default=0.0, metadata={"help": "Stochastic depth of the last decoder layer."}
    )
    resnet_drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth within each ResNet stage."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout. Default: the checkpoint's."})
    decay_all_parameters: bool = field(
        default=False, metadata={"help": "Apply weight decay to biases and LayerNorm too, as the official code does."}
    )
    adam_epsilon_as_fairseq: bool = field(
        default=False, metadata={"help": "Divide AdamW's epsilon by √(1 − β₂ᵗ), as the official code does."}
    )
    eval_rows: int = field(default=1000, metadata={"help": "Rows to predict at each evaluation; 0: all."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many evaluations without a better score; 0: never."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters (needs peft); 0: train the weights."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the LoRA adapters."})
    merge_lora: bool = field(default=True, metadata={"help": "Save one merged model. False: save only the adapter."})
    num_proc: int = field(default=1, metadata={"help": "Processes that read the data files."})

    def __post_init__(self):
        for name, kind in get_type_hints(FinetuneArguments).items():  # a JSON file can contain anything
            kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
            if not any(_fits(getattr(self, name), each) for each in kinds):
                accepted = " or ".join(KINDS[each] for each in kinds)
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {accepted}.")
        for name in ("train", "test"):
            if getattr(self, f"{name}_image_file") and not getattr(self, f"{name}_caption_file") and not self.tasks:
                raise UserError(f"{name}_image_file needs {name}_caption_file. Pass both, or neither.")
        self._check_tasks()
        if (self.train_caption_file is None) == (self.dataset_name is None) and not self.tasks:
            raise UserError(
                "A run trains on files or on a data set. Pass train_caption_file and train_image_file, or pass "
                "dataset_name."
            )
        for name, lowest in (("targets_per_row", 1), ("max_seq_length", 2), ("num_proc", 1), ("lora_rank", 0)):
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.encoder_dtype not in (None, *ENCODER_DTYPES):
            raise UserError(f"encoder_dtype is {self.encoder_dtype}; it must be one of {', '.join(ENCODER_DTYPES)}.")
        for name in ("label_smoothing", "drop_worst_ratio", "dropout", *DROP_PATH_RATES):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")

    def _check_tasks(self) -> None:
        if isinstance(self.tasks, str):
            self.tasks = read_json(self.tasks, "Pass a JSON file with an object of task → its data arguments.")
        asked = [name for name in ("task", "tasks", "columns") if getattr(self, name)]
        if len(asked) > 1:
            raise UserError(f"{' and '.join(asked)} both say what to train. Pass one of them.")
        if self.data_format not in (None, "official"):
            raise UserError(f"data_format is {self.data_format!r}; it must be official, or left out for tables.")
        others = [name for name in self.closed_columns or () if name not in (self.columns or ())]
        if others:
            raise UserError(f"closed_columns has {', '.join(others)}, which is not among columns. Add it there.")
        for task, own in (self.tasks or {}).items():
            unknown = sorted(own.keys() - PER_TASK) if isinstance(own, dict) else [repr(own)]
            if unknown:
                accepted = ", ".join(sorted(PER_TASK))
                raise UserError(f"tasks has {', '.join(unknown)} for {task}; it must be an object of {accepted}.")
            if not _fits(own.get("weight", 1), float) or own.get("weight", 1) <= 0:
                raise UserError(f"The weight of the task {task} is {own['weight']!r}; it must be a number above 0.")

    @property
    def locks_encoder(self) -> bool:
        """Whether the encoder is locked."""
        return self.freeze_encoder is None or self.freeze_encoder

    def weights(self) -> dict[str, float]:
        """Weight of each task of a run of several."""
        return {task: float(own.get("weight", 1)) for task, own in (self.tasks or {}).items()}

    def of_task(self, task: str) -> "FinetuneArguments":
        """The arguments of one task of a run of several."""
        own = {name: value for name, value in self.tasks[task].items() if name != "weight"}
        return dataclasses.replace(self, tasks=None, task=task, **own)


def parse_arguments(
    json_file: str | Path | None, flags: Sequence[str] = ()
) -> tuple[FinetuneArguments, Seq2SeqTrainingArguments]:
    """Parse the arguments of a run from a JSON file, from flags, or from both.

    Args:
        json_file: path of a JSON object of names and values, or a name in `RECIPES`.
        flags: `--name value` or `--name-with-dashes value`; they override the file.

    Raises:
        UserError: the file is not a JSON object, a name is unknown, or a value is invalid.
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
            raise UserError(f"{name} is missing. Set it in the JSON file or with --{name}.")
    for name in FILES_OR_DICTS:
        if not isinstance(values.get(name), (str, PathLike, dict, type(None))):
            raise UserError(f"{name} is {values[name]!r}; it must be the path of a JSON file, or its contents.")
    # Without these, transformers 4 reports to every installed tracker, the best checkpoint is the one with the lowest
    # loss, and a run shorter than its logging interval logs no loss.
    defaults = {"report_to": "none", "metric_for_best_model": TASK_METRIC, "logging_first_step": True}
    fixed = {"remove_unused_columns": False, "logging_nan_inf_filter": False}
    try:
        ours, trainers = parser.parse_dict({**defaults, **values, **fixed})
    # transformers checks few types
    except (ValueError, TypeError, AttributeError, ImportError, OSError, OverflowError) as error:
        raise UserError(f"The arguments are invalid: {error}") from error
    return ours, trainers


def _read_json(json_file: str | Path) -> dict[str, Any]:
    recipe = RECIPES.get(str(json_file))
    path = files("ofa_hf.training").joinpath(recipe) if recipe else Path(json_file)
    advice = f"Pass a JSON file with one object of names and values, or the name of a recipe: {', '.join(RECIPES)}."
    return read_json(path, advice)


def _typed(parser: HfArgumentParser, values: dict[str, Any]) -> dict[str, Any]:
    """Convert strings in a JSON file to numbers and booleans, like flags."""
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
            raise UserError(f"{name} is {value!r}; it must be {wanted}. See `ofa-hf finetune --help`.") from error
    return typed


def _old_flags(flags: Sequence[str]) -> list[str]:
    """Rename old flags to those of argparse, and drop flags without effect with a warning."""
    result, position = [], 0
    flags = list(flags)
    while position < len(flags):
        name, _, value = flags[position].partition("=")
        plain = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and plain in WITHOUT_EFFECT:
            logger.warning(f"{name} has no effect and is ignored.")
            if not value and position + 1 < len(flags) and not flags[position + 1].startswith("--"):
                position += 1
        elif name.startswith("--") and plain in RENAMED_FLAGS:
            result.append(f"--{RENAMED_FLAGS[plain]}" + (f"={value}" if value else ""))
        else:
            result.append(flags[position])
        position += 1
    return result


def _parse_flags(parser: HfArgumentParser, flags: list[str]) -> dict[str, Any]:
    """Values of the given flags, without defaults. Unknown flags are kept, to refuse them with a hint."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            action.default, action.required = argparse.SUPPRESS, False
        if action.dest == "warmup_steps":
            action.type = float  # can be a ratio of all steps, on transformers 4 and 5
    values, others = parser.parse_known_args(flags)
    stray = next((word for word in others if not word.startswith("-")), None)
    names = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in others if word.startswith("-")]
    if stray and not names:
        parser.error(f"unexpected argument {stray!r}; flags are --name value")
    return {**vars(values), **dict.fromkeys(names)}


def _translate(values: dict[str, Any]) -> dict[str, Any]:
    """Translate names of older files and of other versions of transformers."""
    translated = _warmup(values)
    for name, value in values.items():
        if name in WITHOUT_EFFECT:
            logger.warning(f"{name} has no effect and is ignored.")
        elif name == "adafactor":
            translated.update({"optim": "adafactor"} if value else {})
        elif name == "group_by_length":
            logger.warning("group_by_length is ignored: targets are short, and those of one row share a batch.")
        elif name not in ("warmup_ratio", "warmup_steps"):
            translated[RENAMED.get(name, name)] = value
    return translated


def _warmup(values: dict[str, Any]) -> dict[str, Any]:
    """Warm-up as a number of steps or, below 1, a ratio. transformers 4 has two arguments for it, 5 has one."""
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
        raise UserError(f"{name} is {value!r}; it must be a number. See `ofa-hf finetune --help`.")
    return number


def _refuse_unknown(unknown: set[str], known: set[str], source: str | Path | None) -> None:
    if not unknown:
        return
    name = sorted(unknown)[0]
    close = difflib.get_close_matches(name, known, n=1)
    more = f" (+{len(unknown) - 1} more)" if len(unknown) > 1 else ""
    hint = f"Did you mean {close[0]}?" if close else "`ofa-hf finetune --help` lists the names."
    raise UserError(f"Unknown argument {name}{more} in {source or 'the flags'}. {hint}")
