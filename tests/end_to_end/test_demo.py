"""The demo in small: every step of the journey happens, and leaves what it promises."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from ofa_hf.cli import main
from ofa_hf.demo import journey
from ofa_hf.demo.drawing import DrawingSize
from ofa_hf.demo.image_codes import VQGANTraining
from ofa_hf.demo.journey import DemoSize
from ofa_hf.demo.pretraining import Pretraining


SMALL = DemoSize(
    num_train=12,
    num_valid=4,
    image_pixels=48,
    model_pixels=32,
    pretraining=Pretraining(epochs=2, batch_size=6),
    targets_per_row=5,
    batch_captions=20,
    drawing=DrawingSize(
        num_drawn=2,
        pixels=16,
        vqgan=VQGANTraining(factors=(1, 1, 1, 1), width=8, codes=4, side=16, plain_steps=1, whole_steps=1, steps=3),
        epochs=0.2,
        num_images=1,
    ),
)
CAN_DRAW = find_spec("diffusers") is not None


@pytest.fixture
def quick_runs(forks, monkeypatch):
    """The two runs that are compared start as forks; memory is measured of each all the same."""
    started = {}

    def start(command, **_):
        fork = forks.start(command)
        return started.setdefault(fork.pid, fork)

    def wait(pid, options):
        return pid, started[pid].wait() << 8, SimpleNamespace(ru_maxrss=started[pid].peak)

    monkeypatch.setattr(journey, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))
    monkeypatch.setattr(journey.os, "wait4", wait)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_strangers", "quick_runs")
def test_the_demo_goes_all_the_way(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(journey, "DemoSize", lambda: SMALL)
    assert main(["demo", str(tmp_path / "demo"), "--compare-freeze", "--json", *["--draw"] * CAN_DRAW]) == 0
    said, told = capfd.readouterr()
    values = json.loads((tmp_path / "demo" / journey.MARKER).read_text(encoding="utf-8"))
    assert values == json.loads(said.splitlines()[-1])
    assert "before finetuning" in said
    assert 0.0 <= values["caption_accuracy"] <= 1.0
    assert {"cider_d", "bleu_4", "rouge_l", "seconds", "model", "report"} <= values.keys()
    assert "differ by 0.0" in told, "the conversion was not proven"
    page = Path(values["report"]).read_text(encoding="utf-8")
    assert page.count("<article") == 4 + 2 * CAN_DRAW
    assert "http" not in page.replace("http-equiv", ""), "the page must need nothing beside it"
    assert set(values["compare_freeze"]) == {"word embedding trained", "word embedding locked"}
    assert all(run["peak_mib"] > 100 for run in values["compare_freeze"].values())
    assert (tmp_path / "demo" / journey.COMPARISON).stat().st_size > 1000
    if CAN_DRAW:
        assert values["drawing"]["drawn"] == 2
        assert "Of 2 drawings of unseen products" in said
        assert len(list(Path(values["drawing"]["images"]).glob("*.png"))) == 2
    files = {path.name for path in Path(values["model"]).iterdir()}
    assert {"model.safetensors", "config.json", "modeling_ofa.py"} <= files


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["demo", str(tmp_path)]) == 1
    assert "holds no demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.skipif(CAN_DRAW, reason="diffusers is installed; this is what happens without it")
def test_drawing_without_its_library_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "demo"), "--draw"]) == 1
    assert "pip install 'ofa-hf[draw]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
