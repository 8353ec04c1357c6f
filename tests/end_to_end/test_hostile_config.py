"""CVE-2026-4372: no field of a `config.json` makes transformers fetch and import a kernel from the Hub."""

import json

import pytest
import tiny_shop
import torch
from publishing_fixtures import checkpoints  # noqa: F401
from transformers import AutoConfig, AutoModelForImageTextToText, modeling_utils
from transformers.integrations import hub_kernels

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.conversion.convert import convert


EVIL = "somebody/evil-kernel"
FIELDS = {
    "_attn_implementation_internal": EVIL,
    "_experts_implementation_internal": EVIL,
    "_attn_implementation": EVIL,
    "attn_implementation": EVIL,
    "experts_implementation": EVIL,
    "_flash_implementation_internal": EVIL,  # names that a later version may read
    "kernel_config": {"kernel_mapping": {"LayerNorm": EVIL}},
    "encoder": {"_attn_implementation_internal": EVIL},
}


@pytest.fixture
def hostile(tmp_path):
    """A good folder whose `config.json` names a kernel in every field."""
    folder = tiny_shop.write_model(tmp_path / "tiny")
    values = json.loads((folder / "config.json").read_text()) | FIELDS
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """What is taken for the name of a kernel, or fetched as one; on machines without the package kernels too."""
    names = []

    def is_kernel(name):
        names.append(name)
        return False

    monkeypatch.setattr(modeling_utils, "is_kernel", is_kernel)
    for module in (modeling_utils, hub_kernels):
        for name in ("load_and_register_kernel", "load_and_register_attn_kernel", "get_kernel", "lazy_load_kernel"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *words, **_: names.extend(map(str, words)))
    return names


@pytest.mark.parametrize("load", [OFAForConditionalGeneration, AutoModelForImageTextToText])
def test_a_model_loads_and_no_kernel_is_asked_for(hostile, asked, load):
    model = load.from_pretrained(hostile, trust_remote_code=True)
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert EVIL not in vars(model.config).values()
    assert EVIL not in str(asked)
    with torch.no_grad():
        tokens = model.generate(torch.tensor([[0, 9, 2]]), max_new_tokens=2)
    assert len(tokens) == 1


def test_the_fields_are_not_saved_again(hostile, tmp_path):
    AutoConfig.from_pretrained(hostile, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    assert EVIL not in json.loads((tmp_path / "saved" / "config.json").read_text()).values()


def test_a_caller_still_chooses_the_attention(hostile):
    model = OFAForConditionalGeneration.from_pretrained(hostile, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_conversion_of_a_legacy_folder_leaves_them_out(checkpoints, tmp_path, asked):  # noqa: F811
    folder = checkpoints / "legacy"
    values = json.loads((folder / "config.json").read_text()) | FIELDS
    (folder / "config.json").write_text(json.dumps(values))
    account = convert(folder, tmp_path / "out", checkpoints / "vocab.txt", verify=False)
    assert EVIL not in (tmp_path / "out" / "config.json").read_text()
    assert EVIL not in str(asked)
    assert "_attn_implementation_internal" in " ".join(account.values["notes"])
