"""Promises of `ofa_hf.models`: a model is loaded whole or refused in one line that names what is wrong."""

import shutil

import pytest
import tiny_shop
import torch
from safetensors.torch import load_file, save_file

from ofa_hf import models
from ofa_hf.errors import UserError
from ofa_hf.models import check_device, check_model, load_model, load_processor, read_tasks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_shop.write_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_is_loaded_in_inference_mode_with_its_processor_and_the_given_settings(whole):
    model, processor = load_model(whole, device="cpu", dtype=torch.bfloat16, dropout=0.3)
    assert not model.training
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert model.config.dropout == 0.3
    assert processor.tasks == load_processor(whole).tasks


FC1 = "decoder.layers.0.fc1.weight"


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda weights: weights.pop("encoder.embed_tokens.weight"), r"encoder\.embed_tokens\.weight"),
        (lambda weights: weights.pop(FC1), f"{FC1} is missing"),
        (lambda weights: weights.update({FC1: torch.zeros(2, 2)}), f"{FC1} is of another shape"),
        (lambda weights: weights.update(adapter=torch.zeros(2)), "adapter is unknown"),
        (lambda weights: weights.clear(), r"\(\+26\d\) are missing|lacks encoder\.embed_tokens"),
    ],
    ids=["shared embedding", "missing", "mismatched", "unexpected", "none"],
)
def test_weights_that_do_not_match_the_config_are_refused_by_name(folder, change, seen):
    change_weights(folder, change)
    with pytest.raises(UserError, match=seen) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(folder):
    change_weights(folder, lambda weights: weights[FC1].view(-1)[3:5].fill_(torch.nan))
    with pytest.raises(UserError, match=rf"contain NaN: {FC1}"):
        load_model(folder, device="cpu")


def test_what_a_model_can_be_asked_is_known_before_it_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(models.OFAForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    tasks, default, language = read_tasks(folder)
    assert (list(tasks), default, language) == (["caption"], "caption", "zh")
    assert tasks["caption"] == load_processor(folder).find_task()


def test_a_clone_without_git_lfs_is_told_what_to_do(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(UserError, match="model.safetensors is a Git LFS pointer of 63 bytes"):
        load_model(folder, device="cpu")


def test_constants_of_old_checkpoints_are_not_unknown(folder):
    change_weights(folder, lambda weights: weights.update({"decoder.image_position_idx": torch.zeros(2)}))
    assert load_model(folder, device="cpu").model.device.type == "cpu"


@pytest.mark.parametrize(
    ("file", "text", "seen"),
    [
        ("config.json", '{"model_type": "blip"}', "is not OFA: its config.json says model_type='blip'"),
        ("config.json", '{"a": 1}', "is not OFA"),
        ("config.json", "{", "cannot be loaded"),
        ("config.json", "[1]", "cannot be loaded"),
        ("tokenizer.json", "{", "The processor of .* cannot be loaded"),
        ("model.safetensors", "abc", "The model .* cannot be loaded"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_line(folder, file, text, seen):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=seen) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_vocabulary_is_refused_instead_of_answering_nothing(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)  # which transformers 4 writes too
    with pytest.raises(UserError, match="(has only special tokens|cannot be loaded)"):  # transformers 4 or 5
        load_processor(folder)


def test_no_such_model_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="is not OFA: it has no config.json"):
        check_model(tmp_path)
    with pytest.raises(UserError, match="nowhere is neither a folder on this machine nor a Hub id"):
        load_model("nowhere", device="cpu")
    with pytest.raises(UserError, match="The model no/where cannot be loaded"):
        check_model("no/where")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", "cuda:99"])
def test_a_device_that_does_not_work_is_refused_before_the_weights_are_read(whole, device):
    with pytest.raises(UserError, match=f"The device '{device}' cannot be used"):
        load_model(whole, device=device)


def test_the_default_device_works():
    assert check_device(None).type in ("cpu", "cuda", "mps")
