"""`ofa-hf finetune` as a user's shell runs it: interrupted, killed, in two processes.

The first run is a process of its own; the others are forks, which start in a moment.
"""

import json
import shutil
import signal
import sys
import time

import pytest
import torch
from forks import Fork
from tiny_shop import NOISE, command, environment, largest_difference, run, write_arguments, write_shop

from ofa_hf.cli import main


pytestmark = pytest.mark.slow
RESUME = ("--resume_from_checkpoint", "true")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Arguments of a run of 8 steps, and a place for caches."""
    folder = tmp_path_factory.mktemp("shop")
    return write_shop(folder / "data"), folder / "home"


@pytest.fixture(scope="module")
def whole_run(shop, tmp_path_factory):
    """A run that nothing disturbed, in the article's own words; its folder and what it printed."""
    arguments, home = shop
    folder = tmp_path_factory.mktemp("whole")
    old_names = {"evaluation_strategy": "steps", "eval_steps": 4, "warmup_ratio": 0.25, "overwrite_output_dir": True}
    arguments = {**arguments, **old_names, "load_best_model_at_end": True, "save_steps": 4, "fp16": True}
    file = write_arguments(
        folder / "args.json", {**arguments, "output_dir": str(folder / "out"), "lr_scheduler_type": "cosine"}
    )
    finished = run(file, "--json", home=home)
    assert finished.returncode == 0, finished.stderr
    return folder / "out", finished


@pytest.fixture(scope="module")
def straight_run(shop, tmp_path_factory):
    """The weights at the end of a run that nothing disturbed, for those that something did."""
    arguments, _ = shop
    folder = tmp_path_factory.mktemp("straight")
    file = write_arguments(folder / "args.json", {**arguments, "save_strategy": "no"})
    assert finetune_here(file, "--output_dir", folder / "out") == 0
    return folder / "out"


def finetune_here(*words: object) -> int:
    """The command in this process, since each process of its own takes seconds to start; with one thread as there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(["finetune", *map(str, words)])
    finally:
        torch.set_num_threads(threads)


def test_the_articles_argument_names_train_a_model_and_print_its_scores(whole_run):
    folder, finished = whole_run
    result = json.loads(finished.stdout)  # stdout holds nothing else
    assert result["model"] == str(folder)
    assert result["steps"] == 8
    assert {"eval_cider_d", "eval_bleu_4", "eval_rouge_l", "eval_loss", "train_loss"} <= result.keys()
    assert (folder / "training_curve.png").stat().st_size > 1000
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_stderr_says_what_is_trained_and_makes_no_noise(whole_run):
    stderr = whole_run[1].stderr
    for line in ("model ", "trained ", "data ", "batch ", "steps ", "device ", "output "):
        assert f"\n{line}" in f"\n{stderr}", stderr
    assert "12 rows with 48 targets, no problems" in stderr
    assert "12 targets = 6 rows × 2 targets × 1 accumulation steps × 1 processes" in stderr
    for noise in ("mtime", "missing keys", "deprecated", "Warning", "Writing model shards"):
        assert noise not in stderr, stderr


def test_a_trained_folder_loads_with_the_auto_classes_without_the_package(whole_run, forks, tmp_path):
    code = (
        "import sys; sys.modules['ofa_hf'] = None\n"
        "from PIL import Image; from transformers import pipeline\n"
        f"pipe = pipeline('image-to-text', model={str(whole_run[0])!r}, trust_remote_code=True, device='cpu')\n"
        "print(type(pipe.model).__module__); print(pipe(Image.new('RGB', (40, 32), 'red')))"
    )
    ran = forks.run([sys.executable, "-c", code], env=environment(tmp_path), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("transformers_modules")
    assert "generated_text" in ran.stdout


def test_a_killed_run_resumed_ends_with_the_weights_of_an_undisturbed_one(shop, straight_run, tmp_path, capsys, forks):
    arguments, home = shop
    file, folder = write_arguments(tmp_path / "args.json", arguments), tmp_path / "out"
    process = forks.start(command(file, "--output_dir", folder), env=environment(home))
    wait_for(lambda: (folder / "checkpoint-2").is_dir(), process)
    process.kill()  # while or after the first checkpoint is written
    half = folder / "checkpoint-6"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(folder / "checkpoint-2", half, dirs_exist_ok=True)  # … and one was left half-written
    (half / "trainer_state.json").unlink(missing_ok=True)
    status = finetune_here(file, "--output_dir", folder, *RESUME)
    if status and "no complete checkpoint" in capsys.readouterr().err:  # killed before the first one was complete
        shutil.rmtree(folder)
        status = finetune_here(file, "--output_dir", folder)
    assert status == 0
    assert largest_difference(straight_run, folder) == 0


def test_an_interrupted_run_writes_a_checkpoint_says_how_to_go_on_and_does(shop, straight_run, tmp_path, forks):
    arguments, home = shop
    file, folder = write_arguments(tmp_path / "args.json", {**arguments, "save_strategy": "no"}), tmp_path / "out"
    process = forks.start(command(file, "--output_dir", folder), env=environment(home))
    wait_for(lambda: "step 1 " in process.stderr.read_text(encoding="utf-8"), process)
    process.send_signal(signal.SIGINT)
    status, stderr = process.wait(), process.stderr.read_text(encoding="utf-8")
    assert status == 130, stderr
    assert "--resume_from_checkpoint true" in stderr.splitlines()[-1]
    assert len(list(folder.glob("checkpoint-*/trainer_state.json"))) == 1
    assert finetune_here(file, "--output_dir", folder, *RESUME) == 0
    assert largest_difference(straight_run, folder) == 0


def test_two_processes_of_half_a_batch_equal_one_of_a_whole(shop, tmp_path, capsys, forks):
    arguments, home = shop
    arguments = {**arguments, "save_strategy": "no", "dropout": 0.0}  # processes draw different random numbers
    size, file = arguments.pop("per_device_train_batch_size"), write_arguments(tmp_path / "args.json", arguments)
    flags = [file, "--json", "--per_device_train_batch_size"]
    assert finetune_here(*flags, size, "--output_dir", tmp_path / "1") == 0
    results = [json.loads(capsys.readouterr().out)]
    first, second = in_two(forks, home, *flags, size // 2, "--output_dir", tmp_path / "2")
    assert second.stdout == ""  # only the first process prints
    results.append(json.loads(first.stdout))
    for name in ("train_loss", "eval_loss", "eval_cider_d", "eval_bleu_4"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-5, abs=1e-9), name
    assert largest_difference(tmp_path / "1", tmp_path / "2", but=NOISE) < 2e-5


def in_two(forks, home, *words: object):
    """The command in two processes that end well."""
    ran = forks.run_ranks(command(*words), env=environment(home))
    assert [one.returncode for one in ran] == [0, 0], ran[0].stderr + ran[1].stderr
    return ran


def test_two_processes_resumed_in_the_second_epoch_end_with_the_weights_of_an_undisturbed_run(shop, tmp_path, forks):
    arguments, home = shop
    file = write_arguments(tmp_path / "args.json", {**arguments, "per_device_train_batch_size": 6})
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    in_two(forks, home, file, "--output_dir", straight)
    shutil.copytree(straight / "checkpoint-6", resumed / "checkpoint-6")  # 4 steps an epoch
    in_two(forks, home, file, "--output_dir", resumed, *RESUME)
    assert largest_difference(straight, resumed) == 0


def wait_for(condition, process: Fork, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended with {process.status}"
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.01)
