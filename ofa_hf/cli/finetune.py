"""`ofa-hf finetune`: train a model for a task on MUGE or on your own data."""

import argparse
import json
import sys


HELP = "Finetune a model for a task, on MUGE or on your own data."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The flags, ours and over a hundred of the Trainer's, are parsed in `run`, so that other commands start fast.
    # Without a prefix character, argparse passes all words on.
    parser.add_argument("words", nargs="*", metavar="[ARGS.json | article | official] [--name value …] [--json]")
    parser.prefix_chars = "\0"


def run(args: argparse.Namespace) -> int:
    from ofa_hf.training import TrainingStopped, finetune, parse_arguments
    from ofa_hf.training.curve import score_title

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
        shown = ("train_loss", "eval_loss", *filter(score_title, result.metrics))  # --json has all
        summary.update({name: round(result.metrics[name], 4) for name in shown if name in result.metrics})
        print("\n".join(f"{name:16} {value}" for name, value in summary.items()))
    return 0


def leave_process_group() -> None:
    """Close the connections between processes before the interpreter exits, which torch's threads may abort otherwise.

    Not after an error: other processes may be waiting for this one, and closing would wait for them.
    """
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
