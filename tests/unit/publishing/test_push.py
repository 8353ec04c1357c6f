"""One commit, patience with the Hub's bad days, and a clear word when there is nothing more to try."""

import json

import pytest
from loopback_hub import Fault

from ofa_hf.errors import UserError
from ofa_hf.publishing.bundle import Bundle
from ofa_hf.publishing.push import ATTEMPTS, obsolete_files, publish_folder
from ofa_hf.publishing.steps import run_step
from ofa_hf.serving.space import make_space


COMMIT = "POST .*/commit/"


def test_a_folder_goes_up_whole_in_one_commit_with_a_card_that_names_the_repository(hub, model_folder):
    (model_folder / "optimizer.pt").write_bytes(b"private")
    (model_folder / "notes.txt").write_text("private")
    assert publish_folder(model_folder, "shop/tiny") == f"{hub.endpoint}/shop/tiny"
    files = hub.files("shop/tiny")
    assert len(hub.history("shop/tiny")) == 2  # the Hub's first one is empty
    assert {"config.json", "model.safetensors", "modeling_ofa.py", "pipeline_ofa.py", "README.md"} <= files.keys()
    assert not {"optimizer.pt", "notes.txt"} & files.keys()
    assert files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert 'model="shop/tiny"' in files["README.md"].decode()


def test_a_name_alone_becomes_a_repository_of_the_tokens_account(hub, model_folder):
    publish_folder(model_folder, "tiny")
    assert 'model="shop/tiny"' in hub.files("shop/tiny")["README.md"].decode()


def test_pushing_the_same_again_makes_no_commit_and_sends_no_weights(hub, model_folder):
    publish_folder(model_folder, "shop/tiny")
    hub.requests.clear()
    publish_folder(model_folder, "shop/tiny")
    assert len(hub.history("shop/tiny")) == 2
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_old_weights_leave_in_the_same_commit_and_everything_else_stays(hub, model_folder):
    old = {"pytorch_model.bin": b"old", "config.json": b'{"model_type": "ofa"}', "LICENSE": b"mine", "photo.png": b"p"}
    hub.make("shop/tiny", old)
    publish_folder(model_folder, "shop/tiny")
    files = hub.files("shop/tiny")
    assert "pytorch_model.bin" not in files
    assert (files["LICENSE"], files["photo.png"]) == (b"mine", b"p")
    assert len(hub.history("shop/tiny")) == 3


def test_only_weights_and_code_of_an_earlier_state_are_obsolete():
    old = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "modeling_ofa_x.py",
    ]
    kept = ["model.safetensors", "README.md", "train.py", "figure.png", "data/model.safetensors", ".gitattributes"]
    assert obsolete_files([*old, *kept], Bundle({"model.safetensors": b""})) == sorted(old)


def test_a_branch_and_a_pull_request_leave_the_main_branch_alone(hub, model_folder):
    publish_folder(model_folder, "shop/tiny", revision="next")
    url = publish_folder(model_folder, "shop/tiny", create_pr=True)
    assert url == f"{hub.endpoint}/shop/tiny/discussions/1"
    assert not hub.files("shop/tiny")
    assert hub.files("shop/tiny", "next").keys() == hub.files("shop/tiny", "refs/pr/1").keys() != set()


def test_a_pull_request_into_somebody_elses_repository_works(hub, model_folder):
    hub.make("other/ofa", {"config.json": b'{"model_type": "ofa"}', "pytorch_model.bin": b"old"})
    assert publish_folder(model_folder, "other/ofa", create_pr=True).endswith("/discussions/1")
    assert "pytorch_model.bin" not in hub.files("other/ofa", "refs/pr/1")
    assert "pytorch_model.bin" in hub.files("other/ofa")


def test_private_makes_a_private_repository_and_refuses_a_public_one(hub, model_folder):
    publish_folder(model_folder, "shop/secret", private=True)
    assert hub.repositories["shop/secret"].private
    hub.make("shop/open")
    with pytest.raises(UserError, match="exists and is public"):
        publish_folder(model_folder, "shop/open", private=True)
    assert not hub.files("shop/open")


def test_another_kind_of_model_is_not_overwritten(hub, model_folder):
    hub.make("shop/bert", {"config.json": json.dumps({"model_type": "bert"}).encode()})
    with pytest.raises(UserError, match="holds a bert model"):
        publish_folder(model_folder, "shop/bert")
    assert len(hub.history("shop/bert")) == 2


# ----------------------------------------------------------------------------------------------- bad days


@pytest.mark.parametrize(
    "fault",
    [
        Fault(COMMIT, 500, times=2),
        Fault(COMMIT, 503, times=1),
        Fault(COMMIT, 429, times=1, headers={"Retry-After": "0"}),
        Fault(COMMIT, 0, times=2),
        Fault(COMMIT, 0, times=1, after=True),
        Fault(COMMIT, 412, times=1),
        Fault("PUT /blobs/", 0, times=1),
        Fault("validate-yaml", 0, times=1),
        Fault("repos/create", 500, times=1),
        Fault("GET /api/models/", 502, times=1),
    ],
    ids=str,
)
def test_a_bad_moment_of_the_hub_is_sat_out_and_leaves_one_commit(hub, model_folder, fault):
    hub.faults.append(fault)
    publish_folder(model_folder, "shop/tiny")
    assert len(hub.history("shop/tiny")) == 2
    assert "model.safetensors" in hub.files("shop/tiny")
    assert fault.times == 0


@pytest.mark.parametrize("status", [500, 429, 409, 0])
def test_a_hub_that_stays_bad_is_given_up_with_nothing_visible_and_the_next_run_mends_it(hub, model_folder, status):
    hub.faults.append(Fault(COMMIT, status))
    with pytest.raises(UserError, match="shop/tiny was not published.*Run the same command again") as error:
        publish_folder(model_folder, "shop/tiny")
    assert "\n" not in str(error.value)
    assert (str(status) if status else "connection broke") in str(error.value)
    assert len([request for request in hub.requests if "/commit/" in request]) == ATTEMPTS
    assert not hub.files("shop/tiny")
    hub.faults.clear()
    hub.requests.clear()
    publish_folder(model_folder, "shop/tiny")
    assert "model.safetensors" in hub.files("shop/tiny")
    assert not [request for request in hub.requests if request.startswith("PUT")]  # the weights had arrived


@pytest.mark.parametrize(
    ("status", "words"), [(401, "hf auth login"), (403, "may not write"), (404, "no such repository")]
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(hub, model_folder, status, words):
    hub.faults.append(Fault(COMMIT, status))
    with pytest.raises(UserError, match=words):
        publish_folder(model_folder, "shop/tiny")
    assert len([request for request in hub.requests if "/commit/" in request]) == 1


def test_a_pull_request_whose_answer_got_lost_is_not_opened_twice(hub, model_folder):
    hub.make("shop/tiny")
    hub.faults.append(Fault(COMMIT, 0, times=1, after=True))
    with pytest.raises(UserError, match="may exist"):
        publish_folder(model_folder, "shop/tiny", create_pr=True)
    assert [name for name in hub.repositories["shop/tiny"].branches if name != "main"] == ["refs/pr/1"]


def test_a_token_that_only_reads_a_wrong_one_and_none_are_told_apart(hub, model_folder, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="403"):
        publish_folder(model_folder, "shop/tiny", token="hf_reader")
    with pytest.raises(UserError, match="401"):
        publish_folder(model_folder, "shop/tiny", token="hf_expired")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no Hub token was found"):
        publish_folder(model_folder, "shop/tiny")
    work = tmp_path / "work"
    with pytest.raises(UserError, match="no Hub token was found"):
        run_step("publish", str(model_folder), work, repo_id="shop/tiny", upload=True)
    with pytest.raises(UserError, match="no Hub token was found"):
        make_space("shop/page", ["shop/tiny"], work, upload=True)
    assert not work.exists(), "a token is asked for before any work"
    assert not hub.repositories


def test_a_name_that_belongs_to_somebody_else_is_refused(hub, model_folder):
    hub.make("other/ofa")
    with pytest.raises(UserError, match="403.*someone else"):
        publish_folder(model_folder, "other/ofa")


@pytest.mark.parametrize("name", ["", "a/b/c", "with blank/x", "x--y", "shop/..", "shop/é", "/x", "shop/", "a" * 100])
def test_a_bad_name_is_refused_before_anything_is_asked(hub, model_folder, name):
    with pytest.raises(UserError, match="not a valid repository name"):
        publish_folder(model_folder, name)
    assert not hub.requests


def test_a_bad_folder_is_refused_before_anything_is_made_on_the_hub(hub, model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="misses model.safetensors"):
        publish_folder(model_folder, "shop/tiny")
    assert not hub.requests


def test_metadata_that_the_hub_refuses_is_told_as_the_cards_fault(hub, model_folder):
    (model_folder / "README.md").write_text("---\nlicense: [a, b]\n---\nMy own card\n")
    with pytest.raises(UserError, match="refuses the card.*license"):
        publish_folder(model_folder, "shop/tiny")
    assert not hub.files("shop/tiny")
