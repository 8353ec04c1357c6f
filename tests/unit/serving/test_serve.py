"""What `ofa-hf demo --web` serves, and what it refuses; served for real: `end_to_end/test_web.py`."""

import socket
import sys

import pytest

from ofa_hf.cli import main
from ofa_hf.samples.examples import PRODUCTS, draw_examples
from ofa_hf.serving.serve import models_to_serve


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # what serving sets is gone after the test


def test_named_models_are_served_each_once(tmp_path):
    assert models_to_serve(tmp_path, ["b", "a", "b"]) == ["b", "a"]


def test_without_a_name_it_is_what_a_demo_left(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert models_to_serve(tmp_path, []) == [str(tmp_path / "model")]


def test_without_a_demo_either_it_is_said_what_to_do(tmp_path, capsys):
    assert main(["demo", str(tmp_path), "--web"]) == 1
    told = capsys.readouterr().err
    assert "--model" in told
    assert f"ofa-hf demo {tmp_path}" in told
    assert len(told.splitlines()) == 1


def test_a_model_that_is_not_there_is_one_line(capsys):
    pytest.importorskip("gradio", reason="the page needs gradio")
    assert main(["demo", "--web", "--model", "no_such_folder"]) == 1
    told = capsys.readouterr().err
    assert "no_such_folder is neither a folder" in told
    assert "Traceback" not in told


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ofa_hf.serving.web", raising=False)
    monkeypatch.delattr("ofa_hf.serving.web", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--web", "--model", "any/thing"]) == 1
    assert "ofa-hf[web]" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(monkeypatch, capsys):
    web = pytest.importorskip("ofa_hf.serving.web", reason="the page needs gradio", exc_type=ImportError)
    with web.gr.Blocks(analytics_enabled=False) as page:
        web.gr.HTML("")
    monkeypatch.setattr(web, "build_page", lambda models, load, examples: page)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["demo", "--web", "--model", "any", "--port", str(port)]) == 1
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in told
    assert "--port" in told


def test_examples_are_drawn_the_same_each_time(tmp_path):
    first, second = ([path.read_bytes() for path in draw_examples(tmp_path / name)] for name in "ab")
    assert first == second
    assert len(set(first)) == len(PRODUCTS)
