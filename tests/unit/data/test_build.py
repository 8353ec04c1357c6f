"""Promises of `ofa_hf.data.build`: built once, never half there, safe between processes."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ofa_hf.data import build, load_muge, report_of, shards
from ofa_hf.data.muge import TsvRange
from ofa_hf.errors import UserError


REPOSITORY = Path(__file__).parents[3]


def test_the_same_files_are_read_once_and_changed_ones_again(write_muge, tmp_path, monkeypatch):
    files, cache = write_muge(range(4)), tmp_path / "cache"
    first = load_muge(*files, cache_dir=cache)
    monkeypatch.setattr(TsvRange, "read", lambda *_: pytest.fail("read again"))
    assert load_muge(*files, cache_dir=cache)["id"][:] == first["id"][:]
    monkeypatch.undo()
    assert len(load_muge(*write_muge(range(5)), cache_dir=cache)) == 5


def test_another_option_is_another_build(write_muge, tmp_path):
    files = write_muge(range(4), image_lines=[b"9\tAAAA\n"], caption_lines=['{"image_id": "9", "text": ["x"]}'])
    assert len(load_muge(*files, cache_dir=tmp_path / "cache")) == 4
    assert len(load_muge(*files, cache_dir=tmp_path / "cache", check_images=False)) == 5


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(write_muge, tmp_path, monkeypatch):
    files, cache = write_muge(range(4)), tmp_path / "cache"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "mark_duplicates", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_muge(*files, cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.undo()
    assert len(load_muge(*files, cache_dir=cache)) == 4


def load_slowly(files, cache, started) -> None:
    read = TsvRange.read

    def read_slowly(self, index, advance):
        started.set()
        for found in read(self, index, advance):
            time.sleep(0.2)
            yield found

    TsvRange.read = read_slowly
    load_muge(*files, cache_dir=cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start by fork")
def test_a_killed_build_is_cleared_away_by_the_next_one(write_muge, tmp_path):
    files, cache = write_muge(range(30)), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=load_slowly, args=(files, cache, started))
    process.start()
    assert started.wait(30)
    workers = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert workers
    assert not psutil.wait_procs(workers, timeout=10)[1], "a worker outlived the build"
    assert list(cache.glob("*.incomplete-*"))
    assert len(load_muge(*files, cache_dir=cache)) == 30
    assert not list(cache.glob("*.incomplete-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start by fork")
def test_two_processes_that_prepare_the_same_data_share_one_build(write_muge, tmp_path):
    files, cache = write_muge(range(8)), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=load_slowly, args=(files, cache, started))
    process.start()
    assert started.wait(30)
    dataset = load_muge(*files, cache_dir=cache)  # waits for the other one
    process.join(30)
    assert process.exitcode == 0
    assert len(dataset) == 8
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start by fork")
def test_a_killed_worker_is_said_instead_of_waited_for(write_muge, tmp_path, monkeypatch):
    monkeypatch.setattr(TsvRange, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="was killed, most likely because memory ran out"):
        load_muge(*write_muge(range(4)), num_proc=2, cache_dir=tmp_path / "cache")


def test_a_full_disk_is_said_and_leaves_nothing(write_muge, tmp_path, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.ArrowFile, "_flush", write)  # in the process that reads the shard
    with pytest.raises(UserError, match="is full"):
        load_muge(*write_muge(range(4)), cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_data_set_built_elsewhere_has_no_report(write_muge, tmp_path):
    dataset = load_muge(*write_muge(range(4)), cache_dir=tmp_path / "cache")
    assert report_of(dataset).rows == 4
    with pytest.raises(UserError, match="no report"):
        report_of(dataset.from_dict({"a": [1]}))


def test_preparing_data_needs_no_torch_in_the_calling_process(write_muge, tmp_path):
    captions, images = write_muge(range(4))
    code = f"""
import sys
from ofa_hf.data import load_muge
rows = load_muge({str(captions)!r}, {str(images)!r}, cache_dir={str(tmp_path / "cache")!r})
assert len(rows) == 4
assert "torch" not in sys.modules, "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_a_cache_that_cannot_be_written_is_said_with_the_option(write_muge, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written.*--cache_dir"):
        load_muge(*write_muge([0]), num_proc=0, cache_dir=tmp_path / "file" / "cache")
