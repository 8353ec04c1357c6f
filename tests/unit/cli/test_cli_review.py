"""Promises of `ofa-hf review`: it names the address, serves until Ctrl-C, and says what was decided."""

import urllib.request

import pytest
from PIL import Image

from ofa_hf.checking.review import Review
from ofa_hf.cli import main
from ofa_hf.serving.review import ReviewServer


@pytest.fixture
def captions(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "photos" / f"{name}.png")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.png,红色\nb.png,蓝色\nc.png\n", encoding="utf-8")
    return table


def test_decisions_of_a_session_are_in_the_output(captions, monkeypatch, capsys):
    def serve(server):
        opened.append(server.address)
        server.review.decide(0, "accepted", "红裙")
        server.review.decide(1, "rejected", None)
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(ReviewServer, "serve_forever", serve)
    monkeypatch.setattr("webbrowser.open", opened.append)
    output = captions.with_name("kept.csv")
    assert main(["review", str(captions), str(captions.parent / "photos"), "--output", str(output), "--open"]) == 0
    said = capsys.readouterr()
    assert opened == [said.out.strip()] * 2
    assert "left out: 1 × malformed line" in said.err
    assert f"1 accepted, 1 rejected, 0 open. {output}" in said.err
    assert output.read_text(encoding="utf-8-sig").split() == ["image,caption", "a.png,红裙"]


def test_a_port_that_is_taken_is_refused_in_one_line(captions, capsys):
    with ReviewServer(Review(captions, captions.parent / "photos")) as server:
        port = urllib.request.urlparse(server.address).port
        assert main(["review", str(captions), str(captions.parent / "photos"), "--port", str(port)]) == 1
    assert "cannot be used" in capsys.readouterr().err
