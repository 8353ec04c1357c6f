"""The command line: what it lists, refuses and leaves alone. Conversions and fresh processes: `end_to_end`."""

import json

import pytest

from hub_upload.__main__ import DRY_RUN, main
from ofa_hf.catalogue.published import CATALOGUE


def run(capsys, *words):
    status = main([str(word) for word in words])
    return status, capsys.readouterr()


def test_the_catalogue_lists_every_published_checkpoint_with_its_scores(capsys):
    status, told = run(capsys, "catalogue")
    assert status == 0
    assert all(name in told.out for name in CATALOGUE)
    assert "CIDEr-D 50.70, BLEU-4 26.23, ROUGE-L 58.95" in told.out


def test_the_catalogue_as_json_has_source_prompt_size_settings_license_and_where_scores_stand(capsys):
    entries = {entry["name"]: entry for entry in json.loads(run(capsys, "catalogue", "--json")[1].out)}
    base = entries["caption_cn_base"]
    assert base["url"].endswith("/caption_cn_base.pt")
    assert (base["defaults"]["image_size"], base["defaults"]["generation"]["num_beams"]) == (480, 8)
    assert (base["size"], base["license"]) == ("base", None)
    assert base["scores"][0]["source"].endswith("checkpoints_cn.md")
    assert entries["YeungNLP/ofa-cn-base-muge-v2"]["defaults"]["prompt"] == "图片描述了什么?"


def test_a_dry_run_is_the_default_and_asks_nothing_of_the_hub(hub, model_folder, tmp_path, capsys):
    status, told = run(capsys, "upload", model_folder, "--repo-id", "shop/tiny", "--work", tmp_path / "work")
    assert status == 0
    assert DRY_RUN in told.err
    assert "model.safetensors" in told.out
    assert not hub.requests
    staged = tmp_path / "work" / "model" / "bundle"
    assert 'model="shop/tiny"' in (staged / "README.md").read_text(encoding="utf-8")


def test_upload_publishes_and_tells_where(hub, model_folder, tmp_path, capsys):
    words = ("upload", model_folder, "--repo-id", "shop/tiny", "--work", tmp_path / "work", "--upload", "--json")
    status, told = run(capsys, *words, "--private", "--branch", "next", "--message", "First")
    assert status == 0, told.err
    result = json.loads(told.out)
    assert result["repository"] == f"{hub.endpoint}/shop/tiny/tree/next"
    assert hub.repositories["shop/tiny"].private
    assert hub.history("shop/tiny", "next") == ["initial commit", "First"]
    assert DRY_RUN not in told.err


def test_the_card_alone_is_written_into_the_folder(model_folder, tmp_path, capsys):
    words = ("card", model_folder, "--repo-id", "shop/mine", "--license", "cc-by-4.0", "--work", tmp_path / "work")
    assert run(capsys, *words)[0] == 0
    text = (model_folder / "README.md").read_text(encoding="utf-8")
    assert 'model="shop/mine"' in text
    assert "license: cc-by-4.0" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("publish", "no/such/file.pt"), "No checkpoint at no/such/file.pt"),
        (("upload", "MODEL", "--repo-id", "tiny"), "has no owner"),
        (("upload", "MODEL", "--repo-id", "a/b/c"), "not a valid repository name"),
        (("upload", "MODEL", "--repo-id", "other/tiny", "--upload"), "403"),
        (("verify", "MODEL", "--transformers", "nowhere"), "does not contain transformers"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(hub, model_folder, tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.setattr(
        "ofa_hf.publishing.verify.load_without_package", lambda folder, overlay: dict.fromkeys(FIELDS, "")
    )
    words = [model_folder if word == "MODEL" else word for word in words]
    status, output = run(capsys, *words, "--work", tmp_path / "work")
    assert status == 1
    assert told in output.err.splitlines()[-1]
    assert "Traceback" not in output.err


FIELDS = ("transformers", "huggingface_hub", "text", "equal_tensors")


@pytest.mark.parametrize("words", [("upload", "x", "--upload"), ("card", "a", "b", "--repo-id", "x/y"), (), ("fly",)])
def test_wrong_usage_is_status_2(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
