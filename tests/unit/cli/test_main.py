"""What every subcommand can rely on: exit status, one clear line, quiet ends."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import ofa_hf
from ofa_hf import cli
from ofa_hf.errors import UserError


@pytest.fixture
def probe(monkeypatch):
    """Offer one command, `probe`, whose `run` a test chooses."""
    module = SimpleNamespace(
        HELP="Try the frame.",
        add_arguments=lambda parser: parser.add_argument("--n", type=int),
        run=lambda args: 0,
    )
    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return module


def raising(error: BaseException):
    def run(args):
        raise error

    return run


def test_status_of_a_command_is_the_status_of_the_process(probe):
    probe.run = lambda args: args.n
    assert cli.main(["probe", "--n", "3"]) == 3


def test_a_command_that_returns_nothing_has_succeeded(probe):
    probe.run = lambda args: None
    assert cli.main(["probe"]) == 0


def test_user_error_is_one_line_on_stderr_and_status_1(probe, capsys):
    probe.run = raising(UserError("No such model: x.\n  Seen: nothing."))
    assert cli.main(["probe"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "ofa-hf probe: No such model: x. Seen: nothing.\n"


def test_error_of_the_operating_system_is_one_line_that_names_the_file(probe, capsys):
    probe.run = raising(OSError(13, "Permission denied", "captions.jsonl"))
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err == "ofa-hf probe: [Errno 13] Permission denied: 'captions.jsonl'\n"


def test_a_full_disk_is_one_line_that_says_what_to_do(probe, capsys):
    probe.run = raising(OSError(28, "No space left on device"))
    assert cli.main(["probe"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("ofa-hf probe: The disk is full")
    assert "Free some space" in line


def test_a_fault_of_the_code_keeps_its_traceback(probe):
    probe.run = raising(KeyError("x"))
    with pytest.raises(KeyError):
        cli.main(["probe"])


def test_interrupt_is_one_line_and_status_130(probe, capsys):
    probe.run = raising(KeyboardInterrupt())
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "ofa-hf probe: interrupted.\n"


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["probe", "--n", "many"], ["probe", "--unknown"]])
def test_usage_errors_are_status_2(probe, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ofa-hf")


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ofa-hf {ofa_hf.__version__}\n"


def test_only_commands_whose_module_exists_are_offered(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("no_such_module",))
    assert cli.available_commands() == []


def test_every_command_explains_itself(capsys):
    for name in cli.available_commands():
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: ofa-hf {name}" in capsys.readouterr().out


PRINTS_MUCH = """
import sys
from types import SimpleNamespace
from ofa_hf import cli

module = SimpleNamespace(HELP="", add_arguments=lambda parser: None, run=lambda args: print("一只猫\\n" * 100_000))
cli.available_commands = lambda: ["probe"]
cli.importlib.import_module = lambda name: module
sys.exit(cli.main(["probe"]))
"""


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    process = subprocess.Popen([sys.executable, "-c", PRINTS_MUCH], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_text_the_terminal_cannot_show_is_escaped_not_fatal():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", PRINTS_MUCH], capture_output=True, env=environment)
    assert result.returncode == 0
    assert result.stdout.startswith(rb"\u4e00\u53ea\u732b")


@pytest.mark.parametrize(
    "words",
    ["caption t.csv", "ground t.csv", "ocr t.csv", "vqa t.csv", "classify t.csv", "fill t.csv --output o.csv"]
    + ["evaluate --captions t.csv", "check t.csv", "review t.csv photos"],
)
def test_every_command_that_reads_a_table_of_images_takes_the_same_options(words):
    needs_model = words.split()[0] not in ("check", "review")
    options = "--encoding gbk --separator tab --image_column 主图 --image-column 图 --cache_dir c --cache-dir d"
    args = cli.build_parser().parse_args(f"{words} {options}{' --model m' * needs_model}".split())
    assert (args.encoding, args.separator, args.image_column, args.cache_dir) == ("gbk", "tab", "图", "d")
