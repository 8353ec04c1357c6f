"""The command line: parse, call one function per model, print what came out."""

import argparse
import json
import sys
from collections.abc import Sequence

from ofa_hf.errors import UserError, text_of_os_error


STEPS = {
    "fetch": "download the source of a published checkpoint",
    "convert": "… and convert it into a verified Hub-ready folder",
    "card": "… and write its model card",
    "bundle": "… and collect exactly the files to upload",
    "verify": "… and load them in a fresh process without this package",
    "upload": "bundle and upload without verifying",
    "publish": "all steps: fetch, convert, card, bundle, verify, upload",
    "upgrade": "convert a legacy Hub repository in place, keeping its history",
}
SPACE = "create a Space: a web page for models on the Hub"
DRY_RUN = "Dry run: nothing was uploaded. Add --upload to publish."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hub_upload",
        description="Publish OFA models on the Hugging Face Hub. Without --upload, this is a dry run.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    catalogue = commands.add_parser("catalogue", help="list the published checkpoints")
    catalogue.add_argument("--json", action="store_true", help="print the full catalogue as JSON")
    for name, text in STEPS.items():
        add_arguments(commands.add_parser(name, help=text, description=text), name)
    add_space_arguments(commands.add_parser("space", help=SPACE, description=SPACE))
    return parser


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="OWNER/MODEL", help="models of the page")
    parser.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="repository of the Space")
    parser.add_argument("--title", metavar="TEXT", help="title of the Space")
    parser.add_argument(
        "--work", default="outputs/hub_upload", metavar="DIR", help="working folder (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--upload", action="store_true", help="create the Space; otherwise a dry run")
    parser.add_argument("--private", action="store_true", help="make the Space private")
    parser.add_argument("--message", metavar="TEXT", help="commit message")


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    what = "Hub id of the repository" if command == "upgrade" else "catalogue name, checkpoint, folder or Hub id"
    parser.add_argument("targets", nargs="+", metavar="OWNER/NAME" if command == "upgrade" else "MODEL", help=what)
    parser.add_argument(
        "--work", default="outputs/hub_upload", metavar="DIR", help="working folder (default: %(default)s)"
    )
    parser.add_argument("--vocab", metavar="PATH", help="vocabulary for the conversion, as in ofa-hf convert")
    parser.add_argument("--license", metavar="NAME", help="license of the weights (default: unknown)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per model")
    if command != "upgrade":
        parser.add_argument("--repo-id", metavar="OWNER/NAME", help="repository to publish to; one model at a time")
    if command in ("verify", "publish", "upgrade"):
        parser.add_argument(
            "--transformers",
            action="append",
            default=[],
            metavar="DIR",
            help="also verify with the packages in this folder, such as .venv/v4; may be repeated",
        )
        parser.add_argument("--source", metavar="CHECKPOINT", help="checkpoint to compare the weights with")
    if command in ("upload", "publish", "upgrade"):
        parser.add_argument("--upload", action="store_true", help="upload; otherwise a dry run")
        parser.add_argument("--private", action="store_true", help="make the repository private")
        parser.add_argument("--branch", metavar="NAME", help="branch to commit to, created if needed")
        parser.add_argument("--pull-request", action="store_true", help="open a pull request instead of committing")
        parser.add_argument("--message", metavar="TEXT", help="commit message")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, or 1 after one line on stderr about what a user can fix.

    Raises:
        SystemExit: 0 after `--help`, 2 after a usage error.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if getattr(args, "repo_id", None) and len(getattr(args, "targets", ())) > 1:
        parser.error("--repo-id names one repository; pass one model")
    if getattr(args, "upload", False) and args.command != "upgrade" and not args.repo_id:
        parser.error("--upload needs --repo-id OWNER/NAME")
    try:
        return {"catalogue": list_catalogue, "space": make_space}.get(args.command, run)(args)
    except (UserError, OSError) as error:  # the latter: a full disk, a folder that may not be written
        text = str(error) if isinstance(error, UserError) else text_of_os_error(error)
        print(f"hub_upload {args.command}: {' '.join(text.split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hub_upload {args.command}: interrupted. Run it again to resume.", file=sys.stderr)
        return 130


def list_catalogue(args: argparse.Namespace) -> int:
    from ofa_hf.catalogue.published import catalogue_facts, catalogue_lines

    facts = json.dumps(catalogue_facts(), ensure_ascii=False, indent=2) if args.json else ""
    print(facts or "\n".join(catalogue_lines()))
    return 0


def make_space(args: argparse.Namespace) -> int:
    from ofa_hf.serving.space import make_space

    options = {"title": args.title, "private": args.private or None, "message": args.message, "upload": args.upload}
    show(make_space(args.repo_id, args.models, args.work, **options, report=report), args)
    return 0


def run(args: argparse.Namespace) -> int:
    from ofa_hf.publishing.steps import run_step

    names = ("vocab", "license", "repo_id", "source", "upload", "private", "branch", "pull_request", "message")
    options = {name: value for name, value in vars(args).items() if name in names}
    options["private"] = options.get("private") or None
    overlays = getattr(args, "transformers", ())
    for target in args.targets:
        show(run_step(args.command, target, args.work, overlays, **options, report=report), args)
    return 0


def report(step: str) -> None:
    print(step, file=sys.stderr)


def show(result: dict, args: argparse.Namespace) -> None:
    """Print a result, and whether it was a dry run."""
    print(json.dumps(result, ensure_ascii=False) if args.json else "\n".join(lines_of(result)))
    if getattr(args, "upload", None) is False:
        report(DRY_RUN)


def lines_of(result: dict) -> list[str]:
    """A result for a person: one line per fact, lists below their name."""
    lines = []
    for name, value in result.items():
        if value and isinstance(value, list):
            lines += [f"{name}:", *(f"  {entry}" for entry in value)]
        elif value not in (None, "", []):
            lines.append(f"{name}: {value}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
