"""Every piece of the stress run: a little of it with a fixed seed always, a good deal with a fresh one on request."""

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from stress.pieces import PIECES, NotHere


SHARE_OF_A_LONG_RUN = 10  # a tenth; tests/stress/run.py does all of it


def forks(name: str) -> bool:
    """Whether a piece forks jobs that train, which torch refuses in a process that has trained before."""
    return PIECES[name].home.startswith(("crash:", "concurrency:", "numerics:explosions", "long_runs:"))


def run(name: str, seed: int, amount: int, folder) -> None:
    if forks(name):
        return run_apart(name, seed, amount, folder)
    try:
        figures = PIECES[name].function()(seed, amount, folder)
    except NotHere as reason:
        pytest.skip(str(reason))
    print(f"{name}, seed {seed}, {amount} {PIECES[name].unit}: {figures}")


def run_apart(name: str, seed: int, amount: int, folder) -> None:
    script = Path(__file__).with_name("run.py")
    command = [sys.executable, str(script), "--one", name, str(seed), str(amount), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (folder / "outcome.json").is_file(), ran.stderr
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    if outcome["outcome"] == "skipped":
        pytest.skip(outcome["reason"])
    assert outcome["outcome"] == "kept", f"{outcome['reason']}\n{ran.stderr}"


@pytest.mark.parametrize("name", [name for name, piece in PIECES.items() if piece.short])
def test_a_little_of(name, tmp_path):
    run(name, 0, PIECES[name].short, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", list(PIECES))
def test_a_good_deal_of(name, tmp_path):
    run(name, secrets.randbelow(2**32), max(1, PIECES[name].long // SHARE_OF_A_LONG_RUN), tmp_path)
