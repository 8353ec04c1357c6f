"""Settings and weights are found in every official form, training leftovers are never read."""

import argparse
import collections
import os
from enum import Enum

import pytest
import torch

from ofa_hf.conversion.fairseq_reader import is_inert, read_checkpoint
from ofa_hf.errors import UserError


WEIGHTS = {"encoder.a": torch.ones(2), "decoder.b": torch.zeros(3)}


def read(path, **entries):
    torch.save(entries, path)
    return read_checkpoint(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"args": argparse.Namespace(encoder_layers=6, task="caption"), "cfg": None},
        {"args": None, "cfg": {"model": argparse.Namespace(encoder_layers=6), "task": {"_name": "caption"}}},
        {"args": None, "cfg": {"model": {"encoder_layers": 6, "_name": "ofa"}, "task": {"_name": "caption"}}},
        {"cfg": {"model": argparse.Namespace(encoder_layers=6, task="caption"), "task": None}},
    ],
)
def test_settings_are_found_as_namespace_and_as_nested_configuration(tmp_path, entries):
    checkpoint = read(tmp_path / "file.pt", model=WEIGHTS, **entries)
    assert checkpoint.settings["encoder_layers"] == 6
    assert checkpoint.settings["task"] == "caption"
    assert list(checkpoint.weights) == list(WEIGHTS)


def test_omegaconf_configurations_are_read_without_omegaconf(tmp_path):
    """The pickle of a DictConfig, made of look-alikes that have the same class names and states."""
    any_node = type("AnyNode", (), {"__module__": "omegaconf.nodes"})
    dict_config = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})

    def node(value):
        box = any_node()
        box.__dict__ = {"_metadata": None, "_parent": None, "_val": value}
        return box

    def section(**values):
        box = dict_config()
        box.__dict__ = {"_metadata": None, "_parent": None, "_content": values}
        return box

    cfg = section(
        model=section(encoder_layers=node(6), resnet_type=node("resnet101")), task=section(_name=node("ocr"))
    )
    path = tmp_path / "file.pt"
    with look_alikes(any_node, dict_config):
        torch.save({"args": None, "cfg": cfg, "model": WEIGHTS}, path)
    settings = read_checkpoint(path).settings
    assert settings["encoder_layers"] == 6
    assert settings["resnet_type"] == "resnet101"
    assert settings["task"] == "ocr"


class look_alikes:  # noqa: N801
    """Make classes importable under their names while a pickle is written."""

    def __init__(self, *classes):
        self.classes = classes

    def __enter__(self):
        import sys
        import types

        self.added = []
        for cls in self.classes:
            parts = cls.__module__.split(".")
            for length in range(1, len(parts) + 1):
                name = ".".join(parts[:length])
                if name not in sys.modules:
                    sys.modules[name] = types.ModuleType(name)
                    self.added.append(name)
        for cls in self.classes:
            setattr(sys.modules[cls.__module__], cls.__name__, cls)

    def __exit__(self, *_):
        import sys

        for name in self.added:
            del sys.modules[name]


def test_real_omegaconf_files_are_read(tmp_path):
    omegaconf = pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    cfg = omegaconf.OmegaConf.create({"model": {"encoder_layers": 6}, "task": {"_name": "caption"}})
    assert read(tmp_path / "file.pt", cfg=cfg, model=WEIGHTS).settings["encoder_layers"] == 6


def test_enumerations_become_their_value(tmp_path):
    choice = Enum("DDP_BACKEND_CHOICES", {"legacy": "legacy_ddp"}, module="fairseq.dataclass.constants")
    path = tmp_path / "file.pt"
    with look_alikes(choice):
        torch.save({"args": argparse.Namespace(ddp_backend=choice.legacy), "model": WEIGHTS}, path)
    assert read_checkpoint(path).settings == {"ddp_backend": "legacy_ddp"}


def test_training_leftovers_are_named_and_never_read(tmp_path):
    leftovers = {"last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(10_000)}}}, "extra_state": {"best": 1.0}}
    path = tmp_path / "file.pt"
    torch.save({"args": None, "model": WEIGHTS, **leftovers}, path)
    data = bytearray(path.read_bytes())
    position = data.find(b"\x00\x00\x80\x3f" * 100)
    data[position : position + 4] = b"\xff\xff\xff\xff"  # nobody looks at these numbers, not even for their checksum
    path.write_bytes(bytes(data))
    checkpoint = read_checkpoint(path)
    assert checkpoint.ignored == ["last_optimizer_state", "extra_state"]
    assert torch.equal(checkpoint.weights["encoder.a"].load(), torch.ones(2))


def test_plain_weights_are_a_legacy_file(tmp_path):
    checkpoint = read(tmp_path / "pytorch_model.bin", **WEIGHTS)
    assert checkpoint.settings == {}
    assert list(checkpoint.weights) == list(WEIGHTS)


class Attack:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["args", "model", "extra_state"])
def test_a_hostile_pickle_is_refused_by_name_wherever_it_hides(tmp_path, monkeypatch, new, place):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": dict(WEIGHTS), place: {"x": Attack()}}, "file.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"file.pt .*posix.system") as error:
        read_checkpoint("file.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2], "dictionary"),
        ({}, "no weights"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, "state_dict, epoch"),
        ({"model": {"a": 3}}, "holds a"),
        ({"model": {1: torch.ones(1)}}, "not an OFA checkpoint"),
    ],
)
def test_other_content_is_refused_for_what_it_is(tmp_path, value, said):
    torch.save(value, tmp_path / "file.pt")
    with pytest.raises(UserError, match=said):
        read_checkpoint(tmp_path / "file.pt")


def test_missing_files_and_folders_are_said_to_be_missing(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.pt"):
        with pytest.raises(UserError, match="No checkpoint file"):
            read_checkpoint(path)


def test_only_names_that_official_files_contain_are_inert():
    assert is_inert("argparse.Namespace")
    assert is_inert("omegaconf.dictconfig.DictConfig")
    assert is_inert("fairseq.dataclass.configs.FairseqConfig")
    assert is_inert("tasks.mm_tasks.caption.CaptionConfig")
    for name in ("os.system", "builtins.eval", "fairseq.utils.import_user_module", "torch.load", "omegaconf.a.b.c"):
        assert not is_inert(name)


def test_metadata_of_a_state_dict_is_no_obstacle(tmp_path):
    weights = collections.OrderedDict(WEIGHTS)
    weights._metadata = collections.OrderedDict(version=1)
    assert list(read(tmp_path / "file.pt", model=weights).weights) == list(WEIGHTS)
