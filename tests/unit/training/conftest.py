"""A tiny shop, and runs in it."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_shop import write_arguments, write_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> dict:
    """Arguments of a run of 8 steps, all but its output folder."""
    return {**write_shop(tmp_path_factory.mktemp("shop") / "data"), "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture
def parse(shop, tmp_path):
    """Parse the shop's arguments with changes; flags come after."""
    from ofa_hf.training import parse_arguments

    def parse(*flags: str, **changes):
        values = {"output_dir": str(tmp_path / "out"), **shop, **changes}
        return parse_arguments(write_arguments(tmp_path / "args.json", values), flags)

    return parse


@pytest.fixture
def train(parse, tmp_path):
    """Train in the shop with changed arguments, into a folder of its own."""
    from ofa_hf.training import finetune

    def train(name: str = "out", **changes) -> SimpleNamespace:
        result = finetune(*parse(output_dir=str(tmp_path / name), **changes))
        return SimpleNamespace(**{**asdict(result), "folder": Path(result.folder)})

    return train
