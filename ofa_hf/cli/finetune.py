"""`ofa-hf finetune`: train a converted model on MUGE or on a shop's own images."""

import argparse
import json
import sys


HELP = "finetune a model on MUGE or on your own images and captions"
SHOWN = ("train_loss", "eval_loss", "eval_cider_d", "eval_bleu_4", "eval_rouge_l")  # --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Over a hundred flags, ours and the Trainer's, are read in `run`, so that the other commands start at once: with
    # no prefix character left, argparse takes all words as they are.
    parser.add_argument("words", nargs="*", metavar="[ARGS.json | article | official] [--name value …] [--json]")
    parser.prefix_chars = "\0"


def run(args: argparse.Namespace) -> int:
    from ofa_hf.training import TrainingStopped, finetune, parse_arguments

    words = [word for word in args.words if word != "--json"]
    file = words.pop(0) if words and not words[0].startswith("-") else None
    finetune_args, trainer_args = parse_arguments(file, words)
    try:
        result = finetune(finetune_args, trainer_args)
    except TrainingStopped as stopped:
        leave_process_group()
        print(f"ofa-hf finetune: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    leave_process_group()
    if trainer_args.process_index:
        return 0
    summary = {"model": str(result.folder), "steps": result.num_steps, "cut_targets": result.cut_targets}
    if "--json" in args.words:
        print(json.dumps({**summary, **result.metrics}, ensure_ascii=False))
    else:
        summary.update({name: round(result.metrics[name], 4) for name in SHOWN if name in result.metrics})
        print("\n".join(f"{name:16} {value}" for name, value in summary.items()))
    return 0


def leave_process_group() -> None:
    """End the connections between processes before the interpreter ends, which torch's threads may abort otherwise.

    Not after an error: others may wait for this process then, and leaving can take as long as they wait.
    """
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
