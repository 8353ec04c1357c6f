"""`ofa-hf vqa IMAGE_OR_TABLE… --question "…" --model DIR_OR_ID`: answers to questions about images."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Answer questions about images, freely or from a list of answers."
COMMAND = Command(
    "vqa",
    task="vqa",
    answer="answer",
    plural="answers",
    field="question",
    field_option="--question",
    choices_option="--answers",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Answer what can be answered. Returns 1 if any question was left out."""
    return answering.run(args, COMMAND)
