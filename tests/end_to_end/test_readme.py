"""Every block of code in the README runs as it is printed, in a folder that holds the files it speaks of."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small_checkpoints
import tiny_shop
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?:(?P<mark><!-- not a test[^\n]*)\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL)


def blocks(readme: str) -> list[tuple[str, str]]:
    """Language and code of every block that is to run."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return [(found["language"], found["code"]) for found in BLOCK.finditer(text) if not found["mark"]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """What a reader has: a checkpoint, the vocabulary, images, MUGE's files, predictions."""
    folder = tmp_path_factory.mktemp("reader")
    config = small_checkpoints.make_config()
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    small_checkpoints.write_official(folder / "caption_cn_base.pt", weights, small_checkpoints.make_arguments())
    small_checkpoints.write_vocabulary(folder / "vocab.txt")
    (folder / "photos").mkdir()
    for number, colour in enumerate(tiny_shop.COLOURS.values()):
        Image.new("RGB", (64, 48), colour).save(folder / "photos" / f"{number}.jpg")
    Image.new("RGB", (90, 60), "#cc2222").save(folder / "photo.jpg")
    rows = "".join(
        f"{number}.jpg,{text.format(name)}\n"
        for number, name in enumerate(tiny_shop.COLOURS)
        for text in tiny_shop.CAPTIONS[:2]
    )
    (folder / "captions.csv").write_text("image,caption\n" + rows, encoding="utf-8")
    tiny_shop.write_muge(folder, "train", 8)
    tiny_shop.write_muge(folder, "valid", 3)
    lines = [
        json.dumps({"image_id": f"valid{number}", "text": "红色的方块"}, ensure_ascii=False) for number in range(3)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(language: str, code: str, folder: Path) -> subprocess.CompletedProcess:
    """As a reader would: the environment's commands come first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(workplace):
    todo = blocks("README.md")
    todo.sort(
        key=lambda block: "ofa-hf convert" not in block[1]
    )  # the page shows a caption before it tells how to convert
    assert len(todo) >= 6
    for language, code in todo:
        ran = run(language, code, workplace)
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, f"{code}\n{ran.stderr}"
    assert len((workplace / "captions.jsonl").read_text(encoding="utf-8").splitlines()) == len(tiny_shop.COLOURS)
    assert (workplace / "shop-captioner" / "model.safetensors").exists()
    assert "<img" in (workplace / "scores.html").read_text(encoding="utf-8")


def test_both_languages_show_the_same_code():
    def without_comments(readme: str) -> list[str]:
        text = (ROOT / readme).read_text(encoding="utf-8")
        return [re.sub(r" +#.*", "", code) for code in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]

    assert without_comments("README.md") == without_comments("README_zh.md")


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_readme_is_short_and_its_links_lead_somewhere(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
