"""Promises of `ofa-hf check`."""

import json

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.cli import main


@pytest.fixture
def data(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photos" / "a.jpg")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.jpg,<b>红色🍎</b>\n", encoding="utf-8")
    return [str(table), str(tmp_path / "photos"), "--cache-dir", str(tmp_path / "cache")]


def test_the_last_line_of_stdout_is_json(data, tmp_path, capsys):
    page, model = tmp_path / "new" / "page.html", tiny_shop.write_model(tmp_path / "model")
    assert main(["check", *data, "--model", str(model), "--report", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["captions"]) == (1, 1)
    assert found["problems"] == {"caption with characters not in the vocabulary": 1}
    assert "🍎" in found["unknown_characters"]
    assert found["examples"] == [{"image_id": "a.jpg", "captions": ["<b>红色🍎</b>"]}]
    html = page.read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in html
    assert "<b>红色" not in html
    assert "&lt;b&gt;红色" in html


def test_it_says_what_would_be_trained_on_or_exits_with_1(data, tmp_path, capsys):
    assert main(["check", *data]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 images with 1 captions would be trained on.\nRead as csv, utf-8, separator ','")
    assert "pass --model" in err
    (tmp_path / "t.csv").write_text("image,caption\nb.jpg,红色\n", encoding="utf-8")
    assert main(["check", *data, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["problems"]["targets without image"] == 1
    assert "no usable row" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--task", "nothing"], "Unknown task"), (["--report", "/proc/x/page.html"], "cannot be written")],
)
def test_what_cannot_work_is_refused_first(data, capsys, more, message):
    assert main(["check", *data, *more]) == 1
    assert message in capsys.readouterr().err
