"""The command `ofa-hf`: one small module per subcommand, which parses, calls one function and prints.

A module `ofa_hf/cli/<command>.py` has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int`, the exit
status. Heavy imports are inside `run`, so that `--help` is instant. Results go to stdout, everything else to stderr.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from ofa_hf import __version__
from ofa_hf.errors import UserError, text_of_os_error


ANSWERING = ("caption", "ground", "ocr", "vqa", "classify", "summarize", "fill")
COMMANDS = (
    *ANSWERING,
    "draw",
    "convert",
    "check",
    "review",
    "finetune",
    "evaluate",
    "export",
    "demo",
)  # in the order of the help text

SUCCESS, FAILURE = 0, 1
INTERRUPTED = 130  # what a shell reports for Ctrl-C
PIPE_CLOSED = 141  # … and for a pipe whose reader has ended, as in `ofa-hf caption photos/ | head -1`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: arguments after the program's name; the process's own when None.

    Returns:
        0 success, 1 failure (explained in one line on stderr), 130 interrupted, 141 stdout was closed.

    Raises:
        SystemExit: 0 after `--help` and `--version`, 2 after a usage error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # text that the terminal cannot show must not end a long run
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(args.command, str(error))
    except KeyboardInterrupt:
        print(f"ofa-hf {args.command}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        return PIPE_CLOSED
    except OSError as error:  # a full disk, a read-only folder: the user can fix it
        return _fail(args.command, text_of_os_error(error))
    return SUCCESS if status is None else status


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, one subparser per command."""
    parser = argparse.ArgumentParser(
        prog="ofa-hf", description="OFA, one model for images and text: convert, caption, finetune, score."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in available_commands():
        module = importlib.import_module(f"{__name__}.{name}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def available_commands() -> list[str]:
    """Names of the commands this installation has, in the order of the help text."""
    return [name for name in COMMANDS if importlib.util.find_spec(f"{__name__}.{name}")]


def _fail(command: str, message: str) -> int:
    print(f"ofa-hf {command}: {' '.join(message.split())}", file=sys.stderr)
    return FAILURE
