"""A fresh process knows nothing of this package, reaches no network, and says why it failed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ofa_hf.errors import UserError
from ofa_hf.fresh_process import BOOTSTRAP, run_fresh


FAILURE = "It does not load: {reason}. Nothing was kept."


@pytest.fixture
def program(tmp_path):
    """Write a program with this body of `main(request)`; returns its path."""

    def write(*lines: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text("def main(request):\n" + "".join(f"    {line}\n" for line in lines))
        return path

    return write


def test_the_answer_comes_back(program, tmp_path):
    path = program("return {'twice': request['number'] * 2}")
    assert run_fresh(path, {"number": 21}, scratch=tmp_path, failure=FAILURE) == {"twice": 42}


def test_the_packages_of_this_project_cannot_be_imported(program, tmp_path):
    path = program("import ofa_hf.errors")
    with pytest.raises(UserError, match=r"It does not load: ModuleNotFoundError: No module named 'ofa_hf'"):
        run_fresh(path, {}, scratch=tmp_path, failure=FAILURE)
    path = program("import hub_upload")
    with pytest.raises(UserError, match=r"No module named 'hub_upload'\. Nothing was kept"):
        run_fresh(path, {}, scratch=tmp_path, failure=FAILURE)


def test_it_is_offline_with_a_modules_cache_of_its_own_and_sees_the_overlay_first(program, tmp_path):
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "safetensors.py").write_text("__version__ = 'from the overlay'")
    path = program(
        "import os, safetensors",
        "names = 'HF_HUB_OFFLINE', 'HF_MODULES_CACHE'",
        "return {'values': [os.environ[name] for name in names], 'version': safetensors.__version__}",
    )
    answer = run_fresh(path, {}, scratch=tmp_path, failure=FAILURE, overlay=tmp_path / "overlay")
    assert answer == {"values": ["1", str(tmp_path / "modules")], "version": "from the overlay"}


def test_other_packages_can_be_hidden(program, tmp_path):
    path = program("import torch")
    with pytest.raises(UserError, match="No module named 'torch'"):
        run_fresh(path, {}, scratch=tmp_path, failure=FAILURE, hidden=["torch"])


def test_a_program_that_takes_too_long_is_ended(program, tmp_path):
    with pytest.raises(UserError, match="no answer within 1 s"):
        run_fresh(program("import time; time.sleep(60)"), {}, scratch=tmp_path, failure=FAILURE, timeout=1)


def test_a_process_that_dies_without_a_word_is_reported_by_its_status(program, tmp_path):
    with pytest.raises(UserError, match="status -9"):
        run_fresh(program("import os; os.kill(os.getpid(), 9)"), {}, scratch=tmp_path, failure=FAILURE)


def test_it_ends_when_its_parent_is_killed(tmp_path):
    os.mkfifo(tmp_path / "request.json")  # nobody writes into it: the process would wait for ever
    parent = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2], '', str(os.getpid())])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", parent, BOOTSTRAP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    assert not psutil.wait_procs([child], timeout=30)[1], "the child lives on"
