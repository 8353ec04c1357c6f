"""`torchrun … -m ofa_hf caption`: one job in two processes, one of which is killed in the middle."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from PIL import Image
from tiny_shop import COLOURS, write_model

from ofa_hf.cli import main


COUNT = 40


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (40, 40), list(COLOURS.values())[number % 6]).save(folder / f"{number:02d}.png")
    return folder


def start(arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "ofa_hf", "caption", *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def kill_after_first_line(job: subprocess.Popen, rank: int, part) -> None:
    """Kill one process of the job, hard, as soon as it has written something."""
    while not (part.exists() and part.stat().st_size):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.005)
    children = psutil.Process(job.pid).children(recursive=True)
    next(child for child in children if child.environ().get("RANK") == str(rank)).send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_two_processes_write_what_one_writes_also_when_one_is_killed(tmp_path, shop, forks, capsys):
    model, output = write_model(tmp_path / "model"), tmp_path / "two.jsonl"
    options = ("--model", model, "--batch-size", 1, "--num-beams", 3, "--output")
    job = start([shop, *options, output])
    kill_after_first_line(job, 1, tmp_path / "two.part-1.jsonl")
    assert job.wait(120) != 0
    kept = (tmp_path / "two.part-1.jsonl").read_bytes().count(b"\n")
    assert 0 < kept < COUNT // 2
    assert output.stat().st_size == 0

    ran = forks.run_ranks([sys.executable, "-m", "ofa_hf", "caption", shop, *options, output])
    assert [one.returncode for one in ran] == [0, 0], ran[0].stderr + ran[1].stderr
    assert "of 40 images done, 0 not readable" in ran[0].stderr
    assert main(["caption", *map(str, [shop, *options, tmp_path / "one.jsonl"])]) == 0
    assert output.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["one.jsonl", "two.jsonl"]


def test_several_processes_need_a_file(tmp_path, shop, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["caption", str(shop), "--model", str(tmp_path)]) == 1
    assert "Add --output captions.jsonl" in capsys.readouterr().err
    assert main(["caption", str(shop), "--model", str(tmp_path), "--report", str(tmp_path / "page.html")]) == 1
    assert "without torchrun" in capsys.readouterr().err
