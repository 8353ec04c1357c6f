"""The benchmarks run, in small: a figure in a document must not depend on a script that no longer works."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image


NANO = {"d_model": 32, "layers": 1, "heads": 2, "resnet_type": "resnet18"}


@pytest.fixture
def script(monkeypatch):
    """A benchmark as a module, with a model size for tests."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setitem(importlib.import_module("bench_speed").SIZES, "nano", NANO)

    def load(name: str, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def test_the_gpu_table_has_every_row_also_in_small_without_a_gpu(script, tmp_path):
    bench = script("bench_gpu", IMAGE=64, TOKENS=3, CAPTIONS=2)
    options = ["--device", "cpu", "--size", "nano", "--batch-size", "2", "--repeats", "1", "--compile"]
    bench.main([*options, "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    names = [row["name"] for row in found["rows"]]
    starts = ("captioning, one", "captioning, batch", "captioning, static", "encoder", "LiT step, enc", "LiT step, 1")
    for start in starts:
        assert any(name.startswith(start) for name in names), start
    assert all(row["per_second"] > 0 and row["share_of_peak"] > 0 for row in found["rows"])
    assert [each["kernels"] > 0 for each in found["profiles"]] == [True] * 3


def test_the_captioning_benchmark_compares_with_the_baseline(script, tmp_path):
    bench = script("bench_speed", IMAGE=64)
    bench.main(["--size", "nano", "--repeats", "1", "--json", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["same_tokens"]
    assert [row["name"] for row in found["rows"] if "ratio" in row][:4] == [
        "captioning, one image",
        "captioning, batch of 8",
        "captioning, one image, bfloat16",
        "captioning, batch of 8, bfloat16",
    ]
    assert len([row for row in found["rows"] if row.get("share_of_limit", 0) > 0]) == 4


def test_the_training_benchmark_compares_every_way_with_the_baseline(script, tmp_path, monkeypatch):
    bench = script("bench_training", IMAGE=32, IMAGES=2, CAPTIONS=2, VOCABULARY=100, MEMORY={})
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    bench.main(["--size", "nano", "--repeats", "1", "--json", str(tmp_path / "training.json")])
    found = json.loads((tmp_path / "training.json").read_text())
    assert [row["name"] for row in found["speed"] if "ratio" not in row] == [
        "embeddings locked, plain",
        "embeddings trained, plain",
    ]
    compared = [row["name"] for row in found["speed"] if "ratio" in row]
    assert len(compared) == 10
    assert compared[-1] == "embeddings trained, ResNet cached, bfloat16"
    assert [row["name"] for row in found["speed"] if not row.get("share_of_limit")] == [
        "embeddings locked, encoder alone in bfloat16"
    ]
    assert found["data"][1]["ratio"] > 0


def test_the_memory_benchmark_measures_in_processes_of_their_own(script, tmp_path, monkeypatch, forks):
    """Loading, in forks; captioning runs here."""
    bench = script("bench_memory", IMAGE=32)
    monkeypatch.setattr(bench, "subprocess", forks)
    works = dict(bench.WORK)
    monkeypatch.setattr(bench, "WORK", {name: work for name, work in works.items() if "captioning" not in name})
    bench.main(["--size", "nano", "--repeats", "1", "--json", str(tmp_path / "memory.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "memory.json").read_text())["rows"]}
    assert rows["loading a folder"]["ratio"] > 0
    assert rows["loading a folder"]["mebibytes"] > 1
    bench.make_model("nano").save_pretrained(tmp_path / "model")
    for name in works.keys() - bench.WORK.keys():
        works[name][1](str(tmp_path / "model"))


def test_the_folder_benchmark_captions_every_image_both_ways(script, tmp_path):
    bench = script("bench_folder", IMAGE=32)
    bench.SETTINGS.update(min_length=3, max_length=3)
    (tmp_path / "shop").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "shop" / f"{number}.png")
    options = ["--photos", str(tmp_path / "shop"), "--images", "8", "--turns", "2", "--batch-size", "2"]
    bench.main([*options, "--size", "nano", "--json", str(tmp_path / "folder.json")])
    found = json.loads((tmp_path / "folder.json").read_text())
    assert found["images"] == 8
    assert found["speed_of_model"] > 0
    assert found["speed_of_two_processes"] > 0


def test_the_data_benchmark_reports_memory_of_every_step(script, tmp_path):
    options = ["--images", "12", "--side", "32", "--num-proc", "1", "--workers", "1", "--folder", str(tmp_path)]
    script("bench_data").main([*options, "--json", str(tmp_path / "memory.json")])
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["pairs"] == 120
    assert [row["pairs"] for row in found["rows"]] == [120] * 6
    assert found["rows"][3]["work"] == "one epoch of batches, 1 workers"


def test_growth_is_compared_with_what_the_documentation_says(script, capsys):
    growth = script("bench_scaling").Growth("beams", 0.9, 1.1, "linear.")
    for x in (1, 2, 4):
        growth.add(x, f"{x} beams", 1, 3.0 * x, 0)
    assert growth.exponent == pytest.approx(1)
    growth.show()
    assert "time ~ x ^ 1.00, as documented" in capsys.readouterr().out
    growth.add(8, "8 beams", 1, 300.0, 0)
    assert not growth.fits


def test_the_benchmark_of_tasks_compares_each_with_a_caption(script, tmp_path):
    bench = script("bench_tasks", IMAGE=64, TOKENS=3, LABELS=20, COLUMNS=2)
    bench.main(["--size", "nano", "--repeats", "1", "--json", str(tmp_path / "tasks.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "tasks.json").read_text())["rows"]}
    assert next(iter(rows)) == "caption"
    assert {"locate a phrase", "choose among 20 labels", "fill 2 columns with closed lists"} <= rows.keys()
    assert all(row["captions"] > 0 and row["share_of_limit"] > 0 for row in rows.values())


def test_the_drawing_benchmark_compares_codes_with_the_plain_way_and_with_words(script, tmp_path):
    bench = script("bench_drawing", SIDE=64, SAMPLES=3, WORDS=8, PLAIN_STEPS=8)
    sample = bench.OFAForConditionalGeneration._sample
    bench.main(["--size", "nano", "--json", str(tmp_path / "drawing.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "drawing.json").read_text())["rows"]}
    names = [f"{what}, {dtype}" for dtype in ("float32", "bfloat16") for what in ("one image", "3 samples")]
    assert [name for name in rows if name != "codes into an image"] == names
    assert all(rows[name]["ratio"] > 0 and rows[name]["of_words"] > 0 for name in names)
    assert all(rows[name]["growth"] < 20 for name in names)
    assert rows["3 samples, float32"]["images"] > 0
    assert bench.OFAForConditionalGeneration._sample is sample
