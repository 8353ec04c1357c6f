"""The commands of docs/drawing.md that learn and score run, on four images and a small checkpoint."""

import csv
import json

import pytest
from documents import blocks, run
from PIL import Image


PAGE = "docs/drawing.md"
TEXTS = {"red hat": "#cc2222", "what": "#22aa44", "hat": "#2244cc", "a dog": "#ddcc22"}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="drawing needs diffusers")
    from drawing_checkpoint import make_drawing_folder
    from small_clip import write_clip

    make_drawing_folder(tmp_path)
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip")
    (tmp_path / "photos").mkdir()
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "text"])
        for number, (text, color) in enumerate(TEXTS.items()):
            Image.new("RGB", (90 + number, 64), color).save(tmp_path / "photos" / f"{number}.png")
            lines.writerow([f"{number}.png", text])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(workplace, capsys):
    todo = [(language, code) for language, code in blocks(PAGE) if language == "bash"]
    assert len(todo) == 2
    for language, code in todo:
        run(language, code)
    streams = capsys.readouterr()
    assert "4 images with 4 captions would be trained on" in streams.out
    assert "CLIP cosine × 100" in streams.out
    assert (workplace / "own-images" / "0001-1.png").is_file()
    scores = json.loads((workplace / "scores.json").read_text(encoding="utf-8"))
    assert scores["scores"]["num_texts"] == 4
    lines = [json.loads(line) for line in (workplace / "scored" / "images.jsonl").read_text().splitlines()]
    best = [max(image["clip_score"] for image in line["images"]) for line in lines]
    assert scores["scores"]["clip_score"] == pytest.approx(100 * sum(best) / 4)
    assert scores["run"]["num_images"] == 2
