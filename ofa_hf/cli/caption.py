"""`ofa-hf caption IMAGE_OR_FOLDER… --model DIR_OR_ID`: captions on stdout, in a file, or as a page."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Caption images: files, or folders with all their subfolders."
COMMAND = Command("caption", task="caption", answer="caption", plural="captions", as_probabilities=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Caption everything that can be read; 1 if anything could not."""
    return answering.run(args, COMMAND)
