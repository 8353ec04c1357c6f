"""The real command and the real verification: a folder that a process without the package loads."""

import json
import subprocess
import sys
import time

import pytest
import small_checkpoints
import torch

from ofa_hf.cli import main
from ofa_hf.conversion.verify import WITHOUT_PACKAGE, fixed_image
from ofa_hf.fresh_process import run_fresh


def run(*arguments):
    command = [sys.executable, "-m", "ofa_hf", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    config = small_checkpoints.make_config()
    weights = small_checkpoints.make_weights(config)
    official = small_checkpoints.make_official_weights(config, weights)
    small_checkpoints.write_official(folder / "tiny.pt", official, small_checkpoints.make_arguments())
    small_checkpoints.write_legacy(folder / "legacy", config, weights)
    small_checkpoints.write_vocabulary(folder / "vocab.txt")
    return folder


def test_the_command_converts_an_official_file_and_verifies_it(files, tmp_path):
    result = run(files / "tiny.pt", tmp_path / "out", "--vocab", files / "vocab.txt", "--json")
    assert result.returncode == 0, result.stderr
    account = json.loads(result.stdout)
    assert account["proof"]["max_difference"] == 0.0
    assert (
        account["proof"]["equal_tensors"]
        == account["weights"]["counts"]["renamed"] + account["weights"]["counts"]["kept"]
    )
    assert "verifying" in result.stderr
    assert not [entry for entry in tmp_path.iterdir() if entry.name != "out"]


@pytest.mark.usefixtures("quick_strangers")
def test_the_command_converts_a_legacy_folder_and_says_so_in_words(files, tmp_path, capsys):
    words = [files / "legacy", tmp_path / "out", "--vocab", files / "vocab.txt", "--image-size", "64"]
    assert main(["convert", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "legacy OFA folder legacy" in printed
    assert "differ by 0.0" in printed


@pytest.mark.usefixtures("quick_strangers")
def test_the_command_converts_an_english_file_and_captions_without_the_package(tmp_path, capsys):
    config = small_checkpoints.make_config(small_checkpoints.ENGLISH_VOCAB_SIZE)
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    file = small_checkpoints.write_official(tmp_path / "tiny.pt", weights, small_checkpoints.make_arguments())
    vocabulary = small_checkpoints.write_english_vocabulary(tmp_path / "BPE")
    assert main(["convert", *map(str, [file, tmp_path / "out", "--vocab", vocabulary, "--json"])]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account["proof"]["max_difference"] == 0.0
    assert account["checkpoint"]["prompt"] == " what does the image describe?"
    fixed_image().save(tmp_path / "image.png")
    request = {"folder": str(tmp_path / "out"), "threads": 1, "images": [str(tmp_path / "image.png")], "pipeline": {}}
    answer = run_fresh(WITHOUT_PACKAGE, request, scratch=tmp_path, failure="{reason}")
    (text,) = answer["texts"]
    assert text == text.strip()
    assert "\u0120" not in text  # blanks, not the tokenizer's own sign for them


def test_a_hostile_file_is_one_line_status_1_and_no_folder(tmp_path, monkeypatch, capsys):
    class Attack:
        def __reduce__(self):
            return eval, ("open('hacked', 'w')",)

    torch.save({"model": {"a": torch.ones(1)}, "args": Attack()}, tmp_path / "evil.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "evil.pt", "out"]) == 1
    told = capsys.readouterr().err
    assert "builtins.eval" in told.splitlines()[-1]
    assert "Traceback" not in told
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.usefixtures("quick_strangers")
def test_a_killed_conversion_leaves_no_folder_and_the_next_one_succeeds(files, tmp_path, forks):
    words = ["convert", *map(str, [files / "tiny.pt", tmp_path / "out", "--vocab", files / "vocab.txt"])]
    process = forks.start([sys.executable, "-m", "ofa_hf", *words])
    while process.poll() is None and not any(tmp_path.glob(".out.unfinished-*/folder/config.json")):
        time.sleep(0.005)
    process.kill()
    assert not (tmp_path / "out").exists()
    assert any(tmp_path.glob(".out.unfinished-*"))
    assert main(words) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
