"""The Space: what goes up, what is refused, what stays. Used in a browser: `end_to_end/test_web.py`."""

import importlib.metadata
import json

import pytest
import yaml
from loopback_hub import Fault

from hub_upload.__main__ import DRY_RUN, main
from ofa_hf.samples.examples import PRODUCTS
from ofa_hf.serving import space


VERSIONS = {
    "torch": "2.15.0+cpu",
    "torchvision": "0.29",
    "transformers": "5.23.0",
    "pillow": "12.3",
    "gradio": "6.31.0",
    "diffusers": "0.36.0",
}
PAGE = ("space", "shop/tiny", "--repo-id", "shop/page")
FILES = {
    "app.py",
    "requirements.txt",
    "README.md",
    "page.json",
    *(f"example_{n + 1}.jpg" for n in range(len(PRODUCTS))),
}


@pytest.fixture(autouse=True)
def _versions(monkeypatch):
    version = importlib.metadata.version  # of packages that are first imported while this test runs
    monkeypatch.setattr("importlib.metadata.version", lambda name: VERSIONS.get(name) or version(name))
    monkeypatch.setattr(space, "CAN_RUN_IN_A_SPACE", True)
    monkeypatch.setattr(space, "optional_requirements", list)


@pytest.fixture
def tiny(hub):
    return hub.make("shop/tiny", {"config.json": b"{}", "pipeline_ofa.py": b""})


def run(capsys, work, *words):
    status = main([*words, "--work", str(work)])
    return status, capsys.readouterr()


def test_a_dry_run_lays_the_space_out_and_asks_nothing_of_the_hub(hub, tmp_path, capsys):
    status, told = run(capsys, tmp_path, *PAGE)
    assert status == 0
    assert DRY_RUN in told.err
    assert not hub.requests
    folder = tmp_path / "shop--page" / "space"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "app.py").read_bytes() == space.APP.read_bytes()
    assert not (folder / "app.py").samefile(space.APP), "an editor would change the package"


def test_upload_makes_a_space_in_one_commit_and_again_when_run_again(hub, tiny, tmp_path, capsys):
    status, told = run(capsys, tmp_path, *PAGE, "--upload", "--private", "--json", "--message", "First")
    assert status == 0, told.err
    result = json.loads(told.out)
    assert result["space"] == f"{hub.endpoint}/spaces/shop/page"
    assert result["commit"] == hub.repositories["spaces/shop/page"].branches["main"][-1].oid
    assert hub.files("spaces/shop/page").keys() == FILES
    assert hub.history("spaces/shop/page") == ["initial commit", "First"]
    assert hub.repositories["spaces/shop/page"].private
    assert run(capsys, tmp_path, *PAGE, "--upload")[0] == 0
    assert hub.files("spaces/shop/page").keys() == FILES


def test_what_the_hub_builds_the_space_from_is_this_environment(hub, tiny, tmp_path, capsys):
    hub.make("shop/two", {"pipeline_ofa.py": b""})
    words = (
        "space",
        "shop/tiny",
        "shop/two",
        "shop/tiny",
        "--repo-id",
        "shop/page",
        "--title",
        'A: "page"',
        "--upload",
    )
    assert run(capsys, tmp_path, *words)[0] == 0
    files = hub.files("spaces/shop/page")
    assert files["requirements.txt"].decode().split() == [
        "torch==2.15.0",
        "torchvision==0.29",
        "transformers==5.23.0",
        "pillow==12.3",
    ]
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (card["title"], card["sdk"], card["sdk_version"], card["app_file"]) == (
        'A: "page"',
        "gradio",
        "6.31.0",
        "app.py",
    )
    assert len(card["short_description"]) <= 60, "the Hub refuses longer ones"
    assert card["models"] == json.loads(files["page.json"])["models"] == ["shop/tiny", "shop/two"]


def test_examples_of_an_earlier_page_go_and_the_owners_files_stay(hub, tiny, tmp_path, capsys):
    old = {"app.py": b"", "page.json": b"{}", "example_99.jpg": b"old", "example_mine.jpg": b"mine"}
    hub.make("spaces/shop/page", old)
    assert run(capsys, tmp_path, *PAGE, "--upload")[0] == 0
    assert hub.files("spaces/shop/page").keys() == FILES | {"example_mine.jpg"}


def test_a_private_model_needs_a_secret_and_that_is_said(hub, tmp_path, capsys):
    hub.make("shop/tiny", {"pipeline_ofa.py": b""}, private=True)
    status, told = run(capsys, tmp_path, *PAGE, "--upload")
    assert status == 0
    assert "secret HF_TOKEN" in told.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("space", "tiny", "--repo-id", "shop/page"), "'tiny' has no owner"),
        (("space", "shop/tiny", "--repo-id", "a b/c"), "not a valid repository name"),
        (("space", "shop/gone", "--repo-id", "shop/page", "--upload"), "publish this one first"),
        (("space", "shop/legacy", "--repo-id", "shop/page", "--upload"), "has no pipeline_ofa.py"),
        (("space", "shop/tiny", "--repo-id", "other/page", "--upload"), "403"),
        (("space", "shop/tiny", "--repo-id", "shop/game", "--upload"), "holds another app"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_the_hub_as_it_was(hub, tiny, tmp_path, capsys, words, told):
    hub.make("shop/legacy", {"pytorch_model.bin": b""})
    hub.make("spaces/shop/game", {"app.py": b"theirs"})
    before = {name: hub.files(name) for name in hub.repositories}
    status, output = run(capsys, tmp_path, *words)
    assert status == 1
    assert told in output.err.splitlines()[-1]
    assert {name: hub.files(name) for name in hub.repositories} == before


def test_a_hub_with_a_bad_moment_is_asked_again(hub, tiny, tmp_path, capsys):
    hub.faults = [Fault(r"POST /api/spaces/shop/page/commit", 503, times=2), Fault(r"POST /api/repos", 429, times=1)]
    assert run(capsys, tmp_path, *PAGE, "--upload")[0] == 0
    assert hub.files("spaces/shop/page").keys() == FILES


def test_transformers_4_is_refused_since_no_space_could_be_built(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(space, "CAN_RUN_IN_A_SPACE", False)
    status, told = run(capsys, tmp_path, *PAGE)
    assert status == 1
    assert "Run this with transformers 5" in told.err


def test_a_model_that_draws_brings_its_library_into_the_space(hub, tmp_path, monkeypatch, capsys):
    hub.make("shop/tiny", {"pipeline_ofa.py": b"", "vqgan/config.json": b"{}"})
    status, told = run(capsys, tmp_path, *PAGE, "--upload")
    assert status == 1
    assert "pip install 'ofa-hf[draw]'" in told.err
    assert "spaces/shop/page" not in hub.repositories
    monkeypatch.setattr(space, "optional_requirements", lambda: ["diffusers"])
    assert run(capsys, tmp_path, *PAGE, "--upload")[0] == 0
    assert "diffusers==0.36.0" in hub.files("spaces/shop/page")["requirements.txt"].decode().split()
