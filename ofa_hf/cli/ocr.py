"""`ofa-hf ocr IMAGE_OR_FOLDER… --model DIR_OR_ID`: the text in images."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Read the text in images: files, folders, or a table of images."
COMMAND = Command("ocr", task="ocr", answer="text", plural="texts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Read what can be read. Returns 1 if any image was left out."""
    return answering.run(args, COMMAND)
