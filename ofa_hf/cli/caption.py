"""`ofa-hf caption IMAGE_OR_FOLDER… --model DIR_OR_ID`: captions on stdout, in a file, or as a page."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Caption images: files, folders with their subfolders, or a table of images."
COMMAND = Command("caption", task="caption", answer="caption", plural="captions", as_probabilities=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Caption what can be read. Returns 1 if any image was left out."""
    return answering.run(args, COMMAND)
