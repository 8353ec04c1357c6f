"""Drawn images are scored by a CLIP; what cannot be scored so is refused."""

import json

import pytest
from small_clip import write_clip

from ofa_hf.cli import main
from ofa_hf.data.sources import Files, TableForm
from ofa_hf.errors import UserError
from ofa_hf.prediction import evaluating_drawings, text_to_image
from ofa_hf.prediction.evaluating_drawings import evaluate_drawings


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("clip")))


def write(path, *lines):
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return Files(path, is_test=True, form=TableForm(cache_dir=str(path.parent / "cache")))


def test_each_text_is_drawn_once_and_its_best_image_counts(drawer, clip, tmp_path, capsys):
    files = write(tmp_path / "t.csv", "image,text", "a.png,hat", "b.png,dog", "c.png,hat", f"d.png,{'hat ' * 70}")
    result = evaluate_drawings(str(drawer), files, clip, num_images=2, drawn=tmp_path / "drawn")
    lines = [json.loads(line) for line in (tmp_path / "drawn" / "images.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["hat", "dog"]
    best = {line["text"]: 100 * line["images"][0]["clip_score"] for line in lines}
    assert result.scores["clip_score"] == pytest.approx(sum(best.values()) / 2)
    assert result.scores.each["clip_score"] == pytest.approx(best)
    assert (result.scores["num_texts"], result.run["texts_skipped"]) == (2, 1)
    assert "70 words" in capsys.readouterr().err
    assert "CLIP cosine × 100" in result.table()


def test_texts_of_a_table_are_never_read_as_files(drawer, clip, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_to_image.Job, "run", lambda job, rows: drawn.append(rows.names) or 0)
    files = write(tmp_path / "t.csv", "text", "-", "t.csv", "none.txt", "dog.png", "hat")
    with pytest.raises(UserError, match="has no text that can be drawn"):
        evaluate_drawings(str(drawer), files, clip)
    assert drawn == [["-", "t.csv", "none.txt", "hat"]]


def test_files_of_the_original_need_no_codes_to_be_scored(drawer, clip, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluating_drawings, "draw_files", lambda request: drawn.append(list(request.texts)) or 0)
    for number, lines in enumerate((["0\thot dog", "1\ta hat"], ["0\t1 2 3\thot dog", "1\t4\ta hat"])):
        files = write(tmp_path / f"{number}.tsv", *lines)
        with pytest.raises(UserError, match="has no text that can be drawn"):
            evaluate_drawings(str(drawer), files, clip)
    assert drawn == [["hot dog", "a hat"]] * 2


def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(drawer, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_to_image, "load_model", lambda *_, **__: pytest.fail("loaded"))
    files = write(tmp_path / "t.csv", "image,name", "a.png,hat")
    with pytest.raises(UserError, match="has no column text or caption or description or prompt; it has image, name"):
        evaluate_drawings(str(drawer), files, clip)
    with pytest.raises(UserError, match="has no task 'caption'"):
        evaluate_drawings(str(drawer), files, clip, task="caption")
    names = ["evaluate", "--captions", str(tmp_path / "t.csv"), "--model", str(drawer)]
    assert main(names) == 1
    assert "--clip DIR_OR_ID" in capsys.readouterr().err
    for wrong in (["--drawn", "x"], ["--clip", clip, "--report", "x.html"], ["--clip", clip, "--columns"]):
        with pytest.raises(SystemExit):
            main([*names, *wrong])
