"""A folder appears whole or not at all, and a good one is never lost."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from ofa_hf.conversion import verify_child as proof_child
from ofa_hf.conversion.workspace import publish, workspace_for
from ofa_hf.errors import UserError


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out"


def build(workspace, text="new"):
    folder = workspace / "folder"
    folder.mkdir()
    (folder / "conversion.json").write_text(text)
    return folder


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_finished_folder_is_moved_into_place_and_nothing_else_stays(target):
    with workspace_for(target, overwrite=False) as workspace:
        publish(build(workspace), target, workspace)
    assert names(target) == ["conversion.json"]
    assert names(target.parent) == ["out"]


def test_a_failure_leaves_nothing(target):
    def fail():
        with workspace_for(target, overwrite=False) as workspace:
            build(workspace)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(target.parent) == []


def test_leftovers_of_a_killed_run_are_removed(target):
    leftover = target.parent / ".out.converting-abc"
    build_in = leftover / "folder"
    build_in.mkdir(parents=True)
    with workspace_for(target, overwrite=False):
        pass
    assert names(target.parent) == []


def test_a_folder_that_was_being_replaced_when_the_process_died_comes_back(target):
    previous = target.parent / ".out.converting-abc" / "previous"
    previous.mkdir(parents=True)
    (previous / "conversion.json").write_text("old")
    with pytest.raises(UserError, match="earlier conversion"), workspace_for(target, overwrite=False):
        pass
    assert (target / "conversion.json").read_text() == "old"


def test_a_failed_move_puts_the_previous_folder_back(target):
    with workspace_for(target, overwrite=False) as workspace:
        publish(build(workspace, "old"), target, workspace)
    with pytest.raises(FileNotFoundError), workspace_for(target, overwrite=True) as workspace:
        publish(workspace / "nothing", target, workspace)
    assert (target / "conversion.json").read_text() == "old"


def test_only_an_earlier_conversion_is_replaced_and_only_when_asked(target):
    target.mkdir()
    with workspace_for(target, overwrite=False) as workspace:  # an empty folder is fine
        publish(build(workspace, "first"), target, workspace)
    with pytest.raises(UserError, match="--overwrite"), workspace_for(target, overwrite=False):
        pass
    with workspace_for(target, overwrite=True) as workspace:
        publish(build(workspace, "second"), target, workspace)
    assert (target / "conversion.json").read_text() == "second"


def test_other_files_are_never_replaced(target):
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="never replaced"), workspace_for(target, overwrite=True):
        pass
    (target.parent / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"), workspace_for(target.parent / "file", overwrite=True):
        pass


def hold(target, ready, done):
    with workspace_for(target, overwrite=False):
        ready.set()
        done.wait(20)


def test_two_processes_do_not_convert_into_one_folder(target):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(target, ready, done))
    process.start()
    assert ready.wait(20)
    with pytest.raises(UserError, match="Another process"), workspace_for(target, overwrite=False):
        pass
    done.set()
    process.join()


def test_a_proof_that_outlived_its_conversion_and_still_writes_does_not_stop_the_next_one(target):
    scratch = target.parent / ".out.converting-abc" / "proof"
    scratch.mkdir(parents=True)
    end = time.monotonic() + 0.5

    def write():
        number = 0
        while time.monotonic() < end:
            number += 1
            with suppress(FileNotFoundError):  # the folder is gone
                scratch.mkdir(parents=True, exist_ok=True)
                (scratch / str(number)).touch()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        with workspace_for(target, overwrite=False) as workspace:
            publish(build(workspace), target, workspace)
        writing.result()
    assert (target / "conversion.json").exists()


def test_a_proof_ends_when_its_conversion_was_killed(tmp_path):
    os.mkfifo(tmp_path / "request.json")  # nobody writes into it: the proof would wait for ever
    parent = (
        "import os, subprocess, sys, time\n"
        "program, request = open(sys.argv[1]).read(), sys.argv[2]\n"
        "proof = subprocess.Popen([sys.executable, '-c', program, request, str(os.getpid())])\n"
        "print(proof.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", parent, proof_child.__file__, str(tmp_path / "request.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        proof = psutil.Process(int(process.stdout.readline()))
        process.kill()
    assert not psutil.wait_procs([proof], timeout=30)[1], "the proof lives on"
