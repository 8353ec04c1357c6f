"""Save a finished run as a Hub-ready folder with a record of training and scores."""

from pathlib import Path

import torch
import transformers
from transformers import Seq2SeqTrainer

import ofa_hf
from ofa_hf.data.codes import vqgan_files
from ofa_hf.files import new_folder, write_json
from ofa_hf.image_processing_ofa import VQGAN_FOLDER
from ofa_hf.model_card.card import write_card
from ofa_hf.model_card.facts import RESULTS_FILE, trainer_facts
from ofa_hf.publishing.bundle import link_or_copy


def save_result(trainer: Seq2SeqTrainer, metrics: dict[str, float]) -> None:
    """Save model (adapters merged if asked), processor, code, `finetune_results.json` and card to `output_dir`."""
    folder, args = Path(trainer.args.output_dir), trainer.finetune_args
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    trainer.restore_settings()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if args.lora_rank and args.merge_lora:
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    trainer.processor.save_pretrained(folder)
    keep_vqgan(trainer, folder)
    versions = {"ofa_hf": ofa_hf.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    results = {
        "base_model": args.model_name_or_path,
        "arguments": {name: value for name, value in vars(args).items() if value is not None},
        "metrics": metrics,
        "steps": trainer.state.global_step,
        "trainer_arguments": trainer_facts(trainer.args),
        "versions": versions,
    }
    write_json(folder / RESULTS_FILE, results)
    if not args.lora_rank or args.merge_lora:  # an adapter is not a complete model
        write_card(folder)


def keep_vqgan(trainer: Seq2SeqTrainer, folder: str | Path) -> None:
    """Copy the VQGAN of the base model to the folder of a model that draws, as hard links if possible."""
    tasks, target = map(trainer.processor.find_task, trainer.processor.tasks), Path(folder) / VQGAN_FOLDER
    if target.is_dir() or all(task.answer != "image" for task in tasks):
        return
    if found := vqgan_files(trainer.finetune_args.model_name_or_path):
        with new_folder(target) as (new, _):
            for name, file in found.items():
                link_or_copy(file, new / name)


def repository_name(trainer_args) -> str:
    """`hub_model_id`, or the name of the output folder."""
    return trainer_args.hub_model_id or Path(trainer_args.output_dir).resolve().name


def latest_metrics(trainer: Seq2SeqTrainer) -> dict[str, float]:
    """The latest `train_*` and `eval_*` values that the Trainer logged."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        found |= {name: value for name, value in numbers.items() if name.startswith(("train_", "eval_"))}
    return found
