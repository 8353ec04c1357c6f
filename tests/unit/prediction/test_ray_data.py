import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_shop import COLOURS, write_model
from tqdm import tqdm

from ofa_hf import OFAProcessor
from ofa_hf.cli import main
from ofa_hf.errors import UserError
from ofa_hf.models import load_processor
from ofa_hf.prediction import ray_data
from ofa_hf.prediction.files import Request
from ofa_hf.prediction.outputs import AnswerFile, Format
from ofa_hf.prediction.questions import Inputs
from ofa_hf.prediction.ray_data import Counts, predict_with_ray, write_parquet
from ofa_hf.tasks_ofa import TASKS


CONTRADICTION = ("--num-captions", "3", "--num-beams", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("ray") / "model"))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int) -> dict[str, list]:
    """Images with ids, in the stored form of `datasets`; the last one is broken."""
    images = [{"bytes": png(list(COLOURS.values())[number % 6]), "path": None} for number in range(count - 1)]
    return {
        "image_id": [f"商品{number}" for number in range(count)],
        "image": [*images, {"bytes": b"?", "path": None}],
    }


def kill_a_worker_in_the_middle(record: Path, lines_before: int, killed: list[int]) -> None:
    """Wait for the first new line, then kill the process that runs a worker, hard."""
    while record.read_bytes().count(b"\n") <= lines_before:
        time.sleep(0.01)
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "MapWorker" in child.name() + str(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    killed.append(record.read_bytes().count(b"\n"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_nothing_is_lost_or_twice_when_a_worker_and_an_earlier_job_were_killed(model, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    count, before = 600, 3
    data, record, output = rows(count), tmp_path / "captions.jsonl", tmp_path / "captions.parquet"
    pq.write_table(pa.table(data), tmp_path / "shop.parquet", row_group_size=100)
    lines = [json.dumps({"file": name, "caption": "x", "score": -1.0}) + "\n" for name in data["image_id"][:before]]
    record.write_text("".join(lines) + lines[0][:9], encoding="utf-8")  # an earlier job, killed within a line
    killed, failed = [], []
    killer = threading.Thread(target=kill_a_worker_in_the_middle, args=(record, before, killed), daemon=True)
    killer.start()
    options = {"workers": 2, "batch_size": 2, "num_beams": 1, "max_length": 12}
    counts = predict_with_ray(
        "shop.parquet", model, output, on_failure=lambda name, reason: failed.append(name), **options
    )
    assert before < killed[0] < count - 100
    assert counts == Counts(count - 1 - before, 1, before)
    assert failed == data["image_id"][-1:]
    written = pq.read_table(output)
    assert Counter(written["file"].to_pylist()) == Counter(data["image_id"][:-1])
    assert written["captions"].to_pylist()[0] == [{"caption": "x", "score": -1.0}]
    assert all(row["file"] for row in map(json.loads, record.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def opened(monkeypatch):
    """What a worker makes of some inputs, without Ray: `opened(model, inputs, done)` → rows of results."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "get", lambda known: known)
    fake = SimpleNamespace(data=SimpleNamespace(range=lambda count: pa.table({"id": list(range(count))}).to_pandas()))

    def run(model, inputs, done=(), task=TASKS["caption"], asked=Inputs(()), format=Format("caption", 1)):  # noqa: B008
        inputs = inputs if isinstance(inputs, datasets.Dataset) else [str(inputs)]
        request = Request("caption", "caption", Inputs(()), [model], options={"num_beams": 1, "batch_size": 2})
        numbers, source = ray_data._open(fake, inputs, asked, task, "zh", None)
        settings = ray_data.WorkerSettings(model, request, task.name, format, os.getcwd())
        worker = ray_data.Worker(settings, (source, set(done)))
        return worker({name: numbers[name].to_numpy() for name in numbers}).to_pylist()

    return run


def test_folders_and_data_sets_give_the_same_captions_past_broken_images(model, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    data = rows(4)
    (tmp_path / "shop").mkdir()
    for name, image in zip(data["image_id"], data["image"], strict=True):
        (tmp_path / "shop" / f"{name}.png").write_bytes(image["bytes"])
    table = datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    from_folder, from_table, from_disk = opened(model, "shop"), opened(model, table), opened(model, tmp_path / "saved")
    assert from_table == from_disk
    assert [row["answers"] for row in from_folder] == [row["answers"] for row in from_table]
    assert [bool(row["answers"]) for row in from_folder] == [True, True, True, False]
    assert [json.loads(row["name"]) for row in from_table] == data["image_id"]
    assert json.loads(from_folder[0]["name"]) == "shop/商品0.png"
    assert "is not an image" in from_table[3]["error"]


def test_questions_are_asked_about_files_and_about_rows_of_a_data_set(model, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    data = rows(3)
    (tmp_path / "shop").mkdir()
    for name, image in zip(data["image_id"], data["image"], strict=True):
        (tmp_path / "shop" / f"{name}.png").write_bytes(image["bytes"])
    processor = load_processor(model)
    tasks = {"caption": {}, "grounding": {"prompt": "{text}"}}
    OFAProcessor(processor.image_processor, processor.tokenizer, tasks=tasks).save_pretrained(tmp_path / "model")
    shutil.copy(Path(model) / "model.safetensors", tmp_path / "model")
    shutil.copy(Path(model) / "config.json", tmp_path / "model")
    asked = Inputs((), {"text": ["红", "绿"]})
    format = Format("box", 1, names=("file", "text"), has_boxes=True)
    found = opened(str(tmp_path / "model"), "shop", (), task=TASKS["grounding"], asked=asked, format=format)
    names = [json.loads(row["name"]) for row in found]
    assert names == [[f"shop/商品{number}.png", text] for number in range(3) for text in ("红", "绿")]
    assert [bool(row["error"]) for row in found] == [False] * 4 + [True] * 2
    assert json.loads(found[0]["answers"])[0]["size"] == [40, 40]
    table = datasets.Dataset.from_dict({**data, "text": ["红"] * 3}).cast_column("image", datasets.Image())
    found = opened(str(tmp_path / "model"), table, (), task=TASKS["grounding"], asked=Inputs(()), format=format)
    assert [json.loads(row["name"]) for row in found] == [[f"商品{number}", "红"] for number in range(3)]


def test_what_was_done_is_not_done_again(model, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    table = datasets.Dataset.from_dict(rows(3))
    results = opened(model, table, [str(tmp_path / "商品0")])
    assert [bool(row["answers"]) for row in results] == [False, True, False]
    assert [bool(row["error"]) for row in results] == [False, False, True]


def test_an_image_that_ray_sends_twice_is_written_once(tmp_path):
    answers = json.dumps([{"text": "红", "score": -0.5}])
    row = {"name": json.dumps("a.jpg"), "answers": answers, "error": None}
    batches = [pa.Table.from_pylist([row, row], schema=ray_data.RESULT_SCHEMA)] * 2
    with AnswerFile(tmp_path / "c.jsonl", Format("caption", 1)) as output:
        assert ray_data._write(batches, output, print, tqdm(disable=True)) == Counts(1, 0, 0)
    assert (tmp_path / "c.jsonl").read_text(encoding="utf-8").count("a.jpg") == 1


def test_columns_that_are_not_there_are_asked_for(opened, model):
    with pytest.raises(
        UserError, match=r"columns 图片, name, but not image_id.*images \(图片\).*--image_column and --id_column"
    ):
        opened(model, datasets.Dataset.from_dict({"图片": [], "name": []}))


def test_parquet_has_all_captions_of_an_image(tmp_path):
    both = [{"caption": "红", "score": -0.5}, {"caption": "裙", "score": -0.75}]
    lines = [{"file": "a.jpg", **both[0]}, {"file": "b.jpg", **both[0], "captions": both}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_parquet(tmp_path / "c.jsonl", tmp_path / "c.parquet", Format("caption", 1))
    assert pq.read_table(tmp_path / "c.parquet").to_pylist() == [{**lines[0], "captions": both[:1]}, lines[1]]


def test_without_the_extra_its_name_is_said(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["caption", str(tmp_path), "--model", model, "--engine", "ray", "--output", str(tmp_path / "c.jsonl")]
    assert main(arguments) == 1
    assert "pip install 'ofa-hf[ray]'" in capsys.readouterr().err


def test_ray_writes_one_file_for_one_model(model, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["caption", str(tmp_path), "--model", model, "--engine", "ray"])
    assert "--engine ray needs --output FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["caption", str(tmp_path), "--model", model, "--workers", "2"])
    assert "for --engine ray" in capsys.readouterr().err
    command = ["caption", str(tmp_path), "--model", model, "--engine", "ray", "--output", str(tmp_path / "c.jsonl")]
    assert main([*command, *CONTRADICTION]) == 1
    assert "2 beams cannot give 3 answers" in capsys.readouterr().err
