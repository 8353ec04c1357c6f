"""The demo in small: every step of the journey happens, and leaves what it promises."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ofa_hf.cli import main
from ofa_hf.demo import journey
from ofa_hf.demo.drawing import DrawingResult, Drawn
from ofa_hf.demo.journey import DemoSize
from ofa_hf.demo.pretraining import Pretraining
from ofa_hf.samples.shop import Product


SMALL = DemoSize(
    num_train=12,
    num_valid=4,
    image_pixels=48,
    model_pixels=32,
    pretraining=Pretraining(epochs=2, batch_size=6),
    targets_per_row=5,
    batch_captions=20,
)


def draw_one_product(out, vocab_file, captioner, size, seed, step):
    """In place of what `tests/unit/demo/test_drawing.py` tests with the VQGAN's library."""
    assert vocab_file.is_file()
    with step("drawing"):
        image = Image.new("RGB", (64, 64), "red")
    drawn = Drawn(Product("包包", "红色", "纯色"), "红色纯色包包", image, image, "红色", "杯子")
    return DrawingResult(captioner, out, [drawn], 1, 1)


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
    monkeypatch.setattr(journey, "find_diffusers", lambda: None)
    monkeypatch.setattr(journey, "run_drawing", draw_one_product)
    assert main(["demo", str(tmp_path / "demo"), "--compare-freeze", "--draw", "--json"]) == 0
    said, told = capfd.readouterr()
    values = json.loads((tmp_path / "demo" / journey.MARKER).read_text(encoding="utf-8"))
    assert values == json.loads(said.splitlines()[-1])
    assert "before finetuning" in said
    assert 0.0 <= values["caption_accuracy"] <= 1.0
    assert {"cider_d", "bleu_4", "rouge_l", "seconds", "model", "report"} <= values.keys()
    assert "differ by 0.0" in told, "the conversion was not proven"
    page = Path(values["report"]).read_text(encoding="utf-8")
    assert page.count("<article") == 4 + 1
    assert "http" not in page.replace("http-equiv", ""), "the page must need nothing beside it"
    assert set(values["compare_freeze"]) == {"word embedding trained", "word embedding locked"}
    assert all(run["peak_mib"] > 100 for run in values["compare_freeze"].values())
    assert (tmp_path / "demo" / journey.COMPARISON).stat().st_size > 1000
    assert values["drawing"]["colour_right"] == 1
    assert "Of 1 drawings of unseen products, 1 have the right colour and 0 are named rightly" in said
    files = {path.name for path in Path(values["model"]).iterdir()}
    assert {"model.safetensors", "config.json", "modeling_ofa.py"} <= files


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["demo", str(tmp_path)]) == 1
    assert "holds no demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_drawing_without_its_library_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it was not installed
    assert main(["demo", str(tmp_path / "demo"), "--draw"]) == 1
    assert "pip install 'ofa-hf[draw]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
