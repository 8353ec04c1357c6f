"""From a checkpoint to a repository that works for strangers, on a Hub of our own: real commands, fresh processes."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_shop
from forks import use_quick_strangers
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub, use_in_this_process
from PIL import Image
from publishing_fixtures import checkpoints, hub  # noqa: F401

from hub_upload.__main__ import main
from ofa_hf import OFAModelForCaption, OFAProcessor
from ofa_hf.versions_ofa import TRANSFORMERS_5


pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
OVERLAY = REPOSITORY / ".venv" / "v4"

OVERLAYS = [None] + [pytest.param(OVERLAY, marks=pytest.mark.skipif(not OVERLAY.is_dir(), reason="needs .venv/v4"))]
OVERLAYS = OVERLAYS if TRANSFORMERS_5 else OVERLAYS[:1]
WITHOUT_PACKAGE = "import sys; sys.modules['ofa_hf'] = sys.modules['hub_upload'] = None\n"


@pytest.fixture(scope="module")
def published(checkpoints, forks, tmp_path_factory):  # noqa: F811
    """A Hub with `shop/tiny`, published by one command; the folder of the run, and what the command told."""
    folder = tmp_path_factory.mktemp("published")
    Image.new("RGB", (80, 60), "#c8202c").save(folder / "photo.jpg")
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        use_in_this_process(server, patch)
        use_quick_strangers(forks, patch)
        overlays = ["--transformers", OVERLAY] if TRANSFORMERS_5 and OVERLAY.is_dir() else []
        words = ["publish", checkpoints / "tiny.pt", "--vocab", checkpoints / "vocab.txt", "--work", folder / "work"]
        words += ["--repo-id", "shop/tiny", "--upload", "--json", *overlays]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main(list(map(str, words))) == 0
        yield server, folder, json.loads(told.getvalue())


def python(folder: Path, environment: dict[str, str], *words: object, overlay: Path | None = None):
    """A fresh process in `folder`; with an overlay, on its packages."""
    environment = {**environment, "PYTHONPATH": str(overlay)} if overlay else environment
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_one_command_converts_verifies_and_publishes_in_one_commit(published):
    server, _, result = published
    assert len(server.history("shop/tiny")) == 2
    assert result["repository"] == f"{server.endpoint}/shop/tiny"
    assert all("326 equal to the source" in line for line in result["verified"])
    assert "differ" not in server.files("shop/tiny")["README.md"].decode().partition("## Results")[2]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: "4" if overlay else "this")
def test_the_cards_snippet_runs_as_printed_for_a_stranger(published, overlay):
    server, folder, _ = published
    snippet = re.search(r"```python\n(.*?)```", server.files("shop/tiny")["README.md"].decode(), re.DOTALL)[1]
    assert len([line for line in snippet.splitlines() if line]) <= 5
    home = folder / ("home4" if overlay else "home5")
    environment = server.environment(home, token=None)
    told = "\nprint(type(pipe.model).__module__, file=sys.stderr)"
    ran = python(folder, environment, "-c", WITHOUT_PACKAGE + snippet + told, overlay=overlay)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert "transformers_modules.shop.tiny" in ran.stderr


def test_the_package_loads_it_by_name_and_revision(published, monkeypatch):
    server, folder, result = published
    use_in_this_process(server, monkeypatch, token=None)
    model = OFAModelForCaption.from_pretrained("shop/tiny", revision=result["commit"])
    processor = OFAProcessor.from_pretrained("shop/tiny", revision=result["commit"])
    inputs = processor(images=Image.open(folder / "photo.jpg"), return_tensors="pt")
    (text,) = processor.batch_decode(model.generate(**inputs, max_length=6))
    assert isinstance(text, str)


@pytest.mark.usefixtures("quick_strangers")
def test_a_legacy_repository_is_upgraded_in_place_once_and_keeps_its_history(hub, checkpoints, tmp_path, capsys):  # noqa: F811
    old = {path.name: path.read_bytes() for path in (checkpoints / "legacy").iterdir()}
    hub.make("shop/old-ofa", {**old, "LICENSE": b"theirs"})
    words = ["upgrade", "shop/old-ofa", "--vocab", checkpoints / "vocab.txt", "--work", tmp_path, "--upload", "--json"]
    assert main(list(map(str, words))) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["replaced"] == ["pytorch_model.bin"]
    files = hub.files("shop/old-ofa")
    assert {"model.safetensors", "README.md", "LICENSE", "modeling_ofa.py"} <= files.keys()
    assert "pytorch_model.bin" not in files
    assert len(hub.history("shop/old-ofa")) == 3
    assert "pytorch_model.bin" in hub.repositories["shop/old-ofa"].branches["main"][1].files  # to be had for ever
    assert main(list(map(str, words))) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert len(hub.history("shop/old-ofa")) == 3


@pytest.mark.usefixtures("quick_strangers")
def test_a_finetuned_folder_goes_up_with_its_scores_and_without_its_checkpoints(hub, tmp_path, capsys):  # noqa: F811
    from ofa_hf.training import finetune, parse_arguments

    arguments = tiny_shop.write_shop(tmp_path / "shop")
    wishes = {**arguments, "output_dir": str(tmp_path / "out"), "max_steps": 2, "report_to": "none"}
    result = finetune(*parse_arguments(tiny_shop.write_arguments(tmp_path / "args.json", wishes)))
    words = ["upload", result.folder, "--repo-id", "shop/mine", "--work", tmp_path / "work", "--upload"]
    assert main(list(map(str, words))) == 0, capsys.readouterr().err
    files = hub.files("shop/mine")
    assert not [name for name in files if "checkpoint" in name or name in ("training_args.bin", "trainer_state.json")]
    assert {"training_curve.png", "finetune_results.json", "modeling_ofa.py"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    scores = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert scores["CIDEr-D"] == pytest.approx(result.metrics["eval_cider_d"], abs=1e-3)
    assert "IC_train.jsonl" in card.text
    assert str(tmp_path) not in "".join(content.decode("utf-8", "ignore") for content in files.values())
