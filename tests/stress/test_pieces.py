"""Every piece of the stress run: a little of it with a fixed seed always, a good deal with a fresh one on request."""

import secrets

import pytest
from stress.pieces import PIECES, NotHere


SHARE_OF_A_LONG_RUN = 10  # a tenth; tests/stress/run.py does all of it


def run(name: str, seed: int, amount: int, folder) -> None:
    try:
        figures = PIECES[name].function()(seed, amount, folder)
    except NotHere as reason:
        pytest.skip(str(reason))
    print(f"{name}, seed {seed}, {amount} {PIECES[name].unit}: {figures}")


@pytest.mark.parametrize("name", [name for name, piece in PIECES.items() if piece.short])
def test_a_little_of(name, tmp_path):
    run(name, 0, PIECES[name].short, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", list(PIECES))
def test_a_good_deal_of(name, tmp_path):
    run(name, secrets.randbelow(2**32), max(1, PIECES[name].long // SHARE_OF_A_LONG_RUN), tmp_path)
