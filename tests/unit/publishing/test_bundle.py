"""The bundle is what the folder's own files name, whole, and nothing else."""

import errno
import json

import pytest
import torch
from safetensors.torch import save_file

from ofa_hf import OFAForConditionalGeneration, OFAProcessor
from ofa_hf.errors import UserError
from ofa_hf.files import hub_files
from ofa_hf.model_card.facts import without_paths
from ofa_hf.publishing import bundle as module
from ofa_hf.publishing.bundle import bundle_of


def test_code_files_are_found_by_following_settings_and_imports(model_folder):
    (model_folder / "unused.py").write_text("x = 1\n")
    (model_folder / "extra_part.py").write_text("from .extra_deeper import x\n")
    (model_folder / "extra_deeper.py").write_text("x = 1\n")
    pipeline = model_folder / "pipeline_ofa.py"
    pipeline.write_text(pipeline.read_text(encoding="utf-8") + "\nfrom .extra_part import x\n", encoding="utf-8")
    files = bundle_of(model_folder).files
    assert {"modeling_ofa.py", "processing_ofa.py", "extra_part.py", "extra_deeper.py"} <= files.keys()
    assert "unused.py" not in files
    assert "chat_template.jinja" in files


def test_saving_and_bundling_take_exactly_the_hub_files(model_folder, tmp_path):
    expected = {file.name for file in hub_files()}
    assert {name for name in bundle_of(model_folder).files if name.endswith(".py")} == expected
    model = OFAForConditionalGeneration.from_pretrained(model_folder)
    model.save_pretrained(tmp_path / "model")  # alone: what a Trainer of transformers may do
    assert {file.name for file in (tmp_path / "model").glob("*.py")} == expected
    OFAProcessor.from_pretrained(model_folder).save_pretrained(tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").glob("*.py")} == expected


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors",
        "modeling_ofa.py",
        "pipeline_ofa.py",
        "modeling_ofa_resnet.py",
    ],
)
def test_a_missing_file_is_named(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(UserError, match=name):
        bundle_of(model_folder)


def test_cut_off_weights_are_refused(model_folder):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged or cut off"):
        bundle_of(model_folder)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged or cut off"):
        bundle_of(model_folder)


def test_shards_go_up_with_their_index_and_none_may_be_missing(model_folder):
    (model_folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        save_file({name: torch.ones(2)}, model_folder / name)
    index = {"weight_map": {name: name for name in names}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {*names, "model.safetensors.index.json"} <= bundle_of(model_folder).files.keys()
    (model_folder / names[1]).unlink()
    with pytest.raises(UserError, match=names[1]):
        bundle_of(model_folder)


def test_old_weights_are_refused_with_the_command_that_converts_them(model_folder):
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="hub_upload publish"):
        bundle_of(model_folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}'])
def test_a_config_of_another_kind_or_none_at_all_is_refused(model_folder, content):
    (model_folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json"):
        bundle_of(model_folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        bundle_of(tmp_path / "nothing")


def test_paths_of_this_machine_do_not_go_up(model_folder):
    results = {"base_model": "/home/anna/base", "arguments": {"train_caption_file": "/home/anna/IC_train.jsonl"}}
    (model_folder / "finetune_results.json").write_text(json.dumps({**results, "metrics": {}, "steps": 3}))
    files = bundle_of(model_folder).files
    assert b"anna" not in files["finetune_results.json"]
    assert b"IC_train.jsonl" in files["finetune_results.json"]
    assert b"anna" not in files["README.md"]


def test_names_of_the_hub_and_plain_text_are_no_paths():
    kept = {"base_model": "OFA-Sys/ofa", "prompt": "图片描述了什么内容?", "rate": 1e-5, "many": ["a", "b/c"]}
    assert without_paths(kept) == kept
    assert without_paths(["C:\\data\\x.csv", "./runs/1", "~/y"]) == ["x.csv", "1", "y"]


def test_staging_replaces_its_own_folder_and_no_other(model_folder, tmp_path):
    bundle = bundle_of(model_folder)
    staged = bundle.stage(tmp_path / "bundle")
    (staged / "left_over.txt").touch()
    assert {path.name for path in bundle.stage(staged).iterdir()} == set(bundle.files)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    with pytest.raises(UserError, match="never replaced"):
        bundle.stage(tmp_path / "mine")


def test_the_bundle_of_before_stays_whole_until_the_new_one_is(model_folder, tmp_path, monkeypatch):
    bundle = bundle_of(model_folder)
    staged = bundle.stage(tmp_path / "bundle")
    (staged / "of_before.txt").touch()

    def stop(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "link_or_copy", stop)
    with pytest.raises(OSError, match="No space left"):
        bundle.stage(staged)
    assert (staged / "of_before.txt").exists()
    assert {*bundle.files} <= {path.name for path in staged.iterdir()}
    assert [path.name for path in tmp_path.glob(".bundle.unfinished-*")] == []


def test_what_a_killed_bundling_left_does_not_reach_the_next_one(model_folder, tmp_path):
    bundle, leftover = bundle_of(model_folder), tmp_path / ".bundle.unfinished-abc" / "folder"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").touch()
    assert {path.name for path in bundle.stage(tmp_path / "bundle").iterdir()} == set(bundle.files)
    assert not leftover.parent.exists()
