"""Small checkpoints as fixtures; what may be changed by a test is made anew for each."""

import argparse
from collections import OrderedDict
from pathlib import Path

import pytest
import small_checkpoints
import torch

from ofa_hf import OFAConfig


@pytest.fixture(scope="session")
def tiny_config() -> OFAConfig:
    return small_checkpoints.make_config()


@pytest.fixture(scope="session")
def model_weights(tiny_config) -> dict[str, torch.Tensor]:
    return small_checkpoints.make_weights(tiny_config)


@pytest.fixture
def official_weights(tiny_config, model_weights) -> OrderedDict:
    return small_checkpoints.make_official_weights(tiny_config, model_weights)


@pytest.fixture
def arguments() -> argparse.Namespace:
    return small_checkpoints.make_arguments()


@pytest.fixture
def official_file(tmp_path, official_weights, arguments) -> Path:
    return small_checkpoints.write_official(tmp_path / "some_cn_base.pt", official_weights, arguments)


@pytest.fixture
def legacy_folder(tmp_path, tiny_config, model_weights) -> Path:
    return small_checkpoints.write_legacy(tmp_path / "ofa-legacy", tiny_config, model_weights)


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory) -> Path:
    return small_checkpoints.write_vocabulary(tmp_path_factory.mktemp("vocab") / "vocab.txt")


@pytest.fixture(scope="session")
def english_vocabulary(tmp_path_factory) -> Path:
    return small_checkpoints.write_english_vocabulary(tmp_path_factory.mktemp("english") / "BPE")


@pytest.fixture(scope="session")
def english_weights() -> dict[str, torch.Tensor]:
    return small_checkpoints.make_weights(english_config())


def english_config() -> OFAConfig:
    return small_checkpoints.make_config(small_checkpoints.ENGLISH_VOCAB_SIZE)


@pytest.fixture
def english_file(tmp_path, english_weights, arguments) -> Path:
    weights = small_checkpoints.make_official_weights(english_config(), english_weights)
    return small_checkpoints.write_official(tmp_path / "mine.pt", weights, arguments)


@pytest.fixture
def english_legacy_folder(tmp_path, english_weights) -> Path:
    """As OFA-Sys published them in 2022."""
    folder = small_checkpoints.write_legacy(tmp_path / "ofa-tiny", english_config(), english_weights)
    return small_checkpoints.write_bart_vocabulary(folder)
