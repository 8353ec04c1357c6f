"""Run the pieces of the stress run with a fresh seed, each in a process of its own, and print one table of figures.

    python tests/stress/run.py [--minutes 30] [--seed N] [--only NAME …] [--output outputs/stress.json]

The exit status is 1 if a promise was broken. A piece is repeated with the seed and the amount that the table names.
"""

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")  # pieces bring their own second process

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import conftest  # noqa: E402, F401 -- takes the network and the token away, before anything else is imported
from stress.pieces import PIECES, NotHere, Piece  # noqa: E402


FULL_MINUTES = 30  # in which every piece does its `long` amount
MAX_SECONDS = 3600  # of one piece; whatever takes longer hangs
PACKAGES = ("torch", "transformers", "pillow", "datasets", "tokenizers", "numpy")


def main() -> int:
    options = parse_options()
    if options.one:
        return run_here(options.one[0], int(options.one[1]), int(options.one[2]), Path(options.one[3]))
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes} minutes", flush=True)
    record = {**facts(), "seed": seed, "minutes": options.minutes, "pieces": {}}
    for name in options.only or PIECES:
        amount = max(1, round(PIECES[name].long * options.minutes / FULL_MINUTES))
        record["pieces"][name] = outcome = run_apart(name, seed, amount)
        print(lines_of(name, PIECES[name], outcome), flush=True)
        write(options.output, record)
    return int(any(outcome["outcome"] == "broken" for outcome in record["pieces"].values()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="about how long, on two cores")
    parser.add_argument("--seed", type=int, help="of all inputs; default: a fresh one")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), metavar="NAME", help=f"of {', '.join(PIECES)}")
    parser.add_argument("--output", type=Path, default=TESTS.parent / "outputs" / "stress.json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # name, seed, amount, folder: run it in this process
    return parser.parse_args()


def run_apart(name: str, seed: int, amount: int) -> dict:
    """Run a piece in a process of its own, which may crash; returns its outcome."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ofa_hf_stress_") as folder:
        command = [sys.executable, __file__, "--one", name, str(seed), str(amount), folder]
        try:
            status = subprocess.run(command, stdout=sys.stderr, timeout=MAX_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            status = f"no end within {MAX_SECONDS} s"
        result = Path(folder, "outcome.json")
        if result.is_file():
            outcome = json.loads(result.read_text(encoding="utf-8"))
        else:
            outcome = {"outcome": "broken", "reason": f"the process ended with {status}"}
    return {"amount": amount, "unit": PIECES[name].unit, "seconds": round(time.monotonic() - start), **outcome}


def run_here(name: str, seed: int, amount: int, folder: Path) -> int:
    work = folder / "work"
    work.mkdir()
    try:
        outcome = {"outcome": "kept", "figures": PIECES[name].function()(seed, amount, work)}
    except NotHere as reason:
        outcome = {"outcome": "skipped", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"outcome": "broken", "reason": f"{type(error).__name__}: {error}"}
    write(folder / "outcome.json", outcome)
    return 0


def lines_of(name: str, piece: Piece, outcome: dict) -> str:
    """A piece as lines of the table."""
    amount = f"{outcome['amount']:,} {piece.unit}, {outcome['seconds']} s"
    head = f"{outcome['outcome']:<8}{name:<22}{piece.promise} ({amount})"
    if "reason" in outcome:
        return f"{head}\n        {outcome['reason']}"
    figures = outcome["figures"]
    parts = {part: value for part, value in figures.items() if isinstance(value, dict)}
    whole = {key: value for key, value in figures.items() if key not in parts}
    rows = [listed(whole)] * bool(whole) + [f"{part}: {listed(values)}" for part, values in parts.items()]
    return "\n".join([head, *(f"        {row}" for row in rows)])


def listed(figures: dict) -> str:
    return ", ".join(
        f"{key} {value:,}" if isinstance(value, (int, float)) else f"{key} {value}" for key, value in figures.items()
    )


def facts() -> dict:
    versions = {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "machine": f"{platform.machine()}, {platform.system()}", "versions": versions}


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
