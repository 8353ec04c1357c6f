"""`ofa-hf summarize TEXT_OR_FILE… --model DIR_OR_ID`: a summary of each article."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command


HELP = "Summarize articles: texts, files with one per line, tables, or - for the lines of stdin."
COMMAND = Command("summarize", task="summarization", answer="summary", plural="summaries", has_images=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)


def run(args: argparse.Namespace) -> int:
    """Summarize what can be summarized. Returns 1 if anything was left out."""
    return answering.run(args, COMMAND)
