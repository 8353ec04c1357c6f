"""`ofa-hf classify IMAGE_OR_FOLDER… --labels FILE --model DIR_OR_ID`: the label of each image, among thousands."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Find the label of images in a list of labels; or, with --task, of sentences."
COMMAND = Command("classify", task="classification", answer="label", plural="labels", choices_option="--labels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Label everything that can be; 1 if anything could not."""
    return answering.run(args, COMMAND)
