"""`ofa-hf classify IMAGE_OR_FOLDER… --labels FILE --model DIR_OR_ID`: the label of each image, among thousands."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Choose a label from a list for each image or, with --task, for each sentence."
COMMAND = Command("classify", task="classification", answer="label", plural="labels", choices_option="--labels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Label what can be labeled. Returns 1 if anything was left out."""
    return answering.run(args, COMMAND)
