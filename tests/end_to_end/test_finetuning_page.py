"""The commands of docs/finetuning.md run, on a table of six images and a tiny model."""

import base64
import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.cli import main


PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def write_table(path: Path, *rows: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A model, a folder of photos, and the tables that the page names."""
    tiny_shop.write_model(tmp_path / "ofa-cn-base")
    (tmp_path / "photos").mkdir()
    names, lines = list(tiny_shop.COLOURS), []
    for name, value in tiny_shop.COLOURS.items():
        photo = tmp_path / "photos" / f"{name}.png"
        Image.new("RGB", (40, 30), value).save(photo)
        lines.append(f"{name}\t{name}色\t0,0,20,15\t{base64.b64encode(photo.read_bytes()).decode()}\n")
    (tmp_path / "refcoco_cn.tsv").write_text("".join(lines), encoding="utf-8")
    images = [f"{name}.png" for name in names]
    write_table(tmp_path / "captions.csv", ["image", "caption"], *([image, "方块"] for image in images))
    write_table(tmp_path / "boxes.csv", ["image", "text", "box"], *([image, "方块", "0,0,20,15"] for image in images))
    cells = [[image, "红绿"[number % 2], "好"] for number, image in enumerate(images)]
    write_table(tmp_path / "products.csv", ["image", "颜色", "材质"], *cells)
    write_table(tmp_path / "new.csv", ["image", "颜色", "材质"], *cells[:2])
    (tmp_path / "tasks.json").write_text(blocks("json")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(workplace, capsys):
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 8
    for command in commands:
        program, *words = shlex.split(command)
        assert (program, main(words)) == ("ofa-hf", 0), command
    written = {path.name for path in workplace.iterdir() if (path / "model.safetensors").exists()}
    assert written == {"ofa-cn-base", "finder", "refcoco", "shop", "both"}
    assert "Cells right" in capsys.readouterr().out
    results = json.loads((workplace / "both" / "finetune_results.json").read_text(encoding="utf-8"))
    assert "eval_grounding_box_accuracy" in results["metrics"]


def test_the_table_of_columns_has_every_task():
    from ofa_hf.tasks_ofa import TASKS

    for line in re.findall(r"^\| (`.*?) \| `?(.*?) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        for name in re.findall(r"`(\w+)`", line[0]):
            task = TASKS[name]
            assert {*task.fields, task.target_column} <= set(re.findall(r"\w+", line[1])), name
