"""Fixtures of the tests about publishing: a loopback Hub for this process, and folders ready for it."""

import shutil

import loopback_hub
import pytest
import small_checkpoints

from ofa_hf.conversion.convert import convert
from ofa_hf.publishing import push


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process uses, as the account `shop`; attempts follow each other at once."""
    monkeypatch.setattr(push, "PAUSE", 0.0)
    with loopback_hub.LoopbackHub() as server:
        loopback_hub.use_in_this_process(server, monkeypatch)
        yield server


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """`tiny.pt`, `legacy/` and `vocab.txt`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = small_checkpoints.make_config()
    weights = small_checkpoints.make_weights(config)
    official = small_checkpoints.make_official_weights(config, weights)
    small_checkpoints.write_official(folder / "tiny.pt", official, small_checkpoints.make_arguments())
    small_checkpoints.write_legacy(folder / "legacy", config, weights)
    small_checkpoints.write_vocabulary(folder / "vocab.txt")
    return folder


@pytest.fixture(scope="session")
def converted(checkpoints, tmp_path_factory):
    """A converted folder that no test changes."""
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(checkpoints / "tiny.pt", folder, checkpoints / "vocab.txt", verify=False)
    return folder


@pytest.fixture
def model_folder(converted, tmp_path):
    """A converted folder that a test may spoil."""
    return shutil.copytree(converted, tmp_path / "model")
