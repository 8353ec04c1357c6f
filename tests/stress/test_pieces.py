"""Every piece of the stress run: a little of it with a fixed seed always, a good deal with a fresh one on request."""

import json
import secrets
import sys
from pathlib import Path

import pytest
from stress.pieces import PIECES, NotHere


SHARE_OF_A_LONG_RUN = 10  # a tenth; tests/stress/run.py does all of it


def forks(name: str) -> bool:
    """Whether a piece forks jobs that train, which torch refuses in a process that has trained before."""
    return PIECES[name].home.startswith(("crash:", "concurrency:", "numerics:explosions", "long_runs:"))


@pytest.fixture
def run(request, tmp_path):
    """Run a piece, apart if it forks: `run(name, seed, amount)`."""

    def run(name: str, seed: int, amount: int) -> None:
        if forks(name):
            return run_apart(request.getfixturevalue("forks"), name, seed, amount, tmp_path)
        try:
            figures = PIECES[name].function()(seed, amount, tmp_path)
        except NotHere as reason:
            pytest.skip(str(reason))
        print(f"{name}, seed {seed}, {amount} {PIECES[name].unit}: {figures}")

    return run


def run_apart(forks, name: str, seed: int, amount: int, folder: Path) -> None:
    program = Path(__file__).with_name("run.py")
    ran = forks.run([sys.executable, program, "--one", name, seed, amount, folder])
    assert (folder / "outcome.json").is_file(), f"status {ran.returncode}\n{ran.stderr}"
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    if outcome["outcome"] == "skipped":
        pytest.skip(outcome["reason"])
    assert outcome["outcome"] == "kept", f"{outcome['reason']}\n{ran.stderr}"


@pytest.mark.parametrize("name", [name for name, piece in PIECES.items() if piece.short])
def test_a_little_of(name, run):
    run(name, 0, PIECES[name].short)


@pytest.mark.stress
@pytest.mark.parametrize("name", list(PIECES))
def test_a_good_deal_of(name, run):
    run(name, secrets.randbelow(2**32), max(1, PIECES[name].long // SHARE_OF_A_LONG_RUN))
