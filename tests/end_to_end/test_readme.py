"""The documents keep their word: the code of the README runs, and every file, command and option named exists."""

import dataclasses
import functools
import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import datasets
import pytest
import small_checkpoints
import tiny_shop
from documents import ROOT, blocks, run, text_of
from PIL import Image, ImageChops

from ofa_hf.samples.shop import is_right
from ofa_hf.tasks_ofa import TASKS


READMES = ("README.md", "README_zh.md")
DOCUMENTS = (
    *READMES,
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))),
    "notebooks/finetune_on_your_images.ipynb",
)
RAY = "--engine ray"
FOREIGN_OPTIONS = {"--help", "--nproc_per_node"}  # argparse's, torchrun's
FOREIGN_OPTIONS |= {"--zero-shot", "--add-object", "--is-document", "--code-dict-size"}  # of the official scripts


# ------------------------------------------------------------------------------------------------ the code runs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """What a reader has: a checkpoint, the vocabulary, images, tables, MUGE's files, predictions."""
    folder = tmp_path_factory.mktemp("reader")
    config = small_checkpoints.make_config()
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    small_checkpoints.write_official(folder / "caption_cn_base.pt", weights, small_checkpoints.make_arguments())
    pretrained = small_checkpoints.make_arguments()
    pretrained.task = "unify_task"
    small_checkpoints.write_official(folder / "ofa_cn_base.pt", weights, pretrained)
    small_checkpoints.write_vocabulary(folder / "vocab.txt")
    write_images_and_tables(folder)
    tiny_shop.write_muge(folder, "train", 8)
    tiny_shop.write_muge(folder, "valid", 3)
    lines = [
        json.dumps({"image_id": f"valid{number}", "text": "红色的方块"}, ensure_ascii=False) for number in range(3)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_images_and_tables(folder: Path) -> None:
    (folder / "photos").mkdir()
    Image.new("RGB", (90, 60), "#cc2222").save(folder / "photo.jpg")
    captions, materials, products = ["image,caption"], ["image,product,material"], []
    for number, (name, colour) in enumerate(tiny_shop.COLOURS.items()):
        photo = folder / "photos" / f"{number}.jpg"
        Image.new("RGB", (64, 48), colour).save(photo)
        captions += [f"{number}.jpg,{text.format(name)}" for text in tiny_shop.CAPTIONS[:2]]
        materials.append(f"{number}.jpg,裙子,红色")
        products.append({"photo": photo.read_bytes(), "sku": f"A{number}"})
    (folder / "captions.csv").write_text("\n".join(captions) + "\n", encoding="utf-8")
    (folder / "materials.csv").write_text("\n".join(materials) + "\n", encoding="utf-8")
    datasets.Dataset.from_list(products).to_parquet(folder / "products.parquet")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_strangers")
def test_every_block_of_the_readme_runs(workplace, monkeypatch, capfd):
    todo = blocks("README.md")
    assert len(todo) >= 11
    monkeypatch.chdir(workplace)
    for language, code in todo:
        run(language, code)
    assert "Traceback" not in capfd.readouterr().err
    assert has_a_line_per_photo(workplace / "photos.csv")
    assert (workplace / "shop-captioner" / "model.safetensors").exists()
    assert json.loads((workplace / "materials" / "processor_config.json").read_text())["default_task"] == "material"
    assert "<img" in (workplace / "scores.html").read_text(encoding="utf-8")
    assert len(list((workplace / "drawn").glob("*.jpg"))) == len(tiny_shop.COLOURS)
    boxes = json.loads((workplace / "boxes.json").read_text(encoding="utf-8"))
    assert len(boxes["annotations"]) + boxes["info"]["boxes_without_area"] == len(tiny_shop.COLOURS)
    assert has_a_line_per_photo(workplace / "texts.csv")


def has_a_line_per_photo(table: Path) -> bool:
    return len(table.read_text(encoding="utf-8").splitlines()) >= 1 + len(tiny_shop.COLOURS)


@pytest.mark.slow
def test_the_example_with_ray_runs(workplace, monkeypatch):
    pytest.importorskip("ray", reason="ray (the extra ray) is not installed")
    monkeypatch.chdir(workplace)
    # For Ray's workers; without the cache of remote code that an earlier test may have put on the path.
    paths = [path for path in sys.path if path and not Path(path, "transformers_modules").exists()]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    (found,) = [code for _, code in blocks("docs/answering.md") if RAY in code]
    if not (workplace / "ofa-cn-base-caption").exists():
        run("bash", next(code for _, code in blocks("README.md") if code.startswith("ofa-hf convert")).splitlines()[0])
    run("bash", found)
    assert has_a_line_per_photo(workplace / "products.csv")


def test_both_languages_show_the_same_code():
    def without_comments(readme: str) -> list[str]:
        return [re.sub(r" +#.*", "", code) for code in re.findall(r"```\w*\n(.*?)```", text_of(readme), re.DOTALL)]

    assert without_comments("README.md") == without_comments("README_zh.md")


def test_the_image_of_the_readme_is_the_one_that_its_command_draws():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        draw_image = import_module("draw_image")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    drawn, shown = draw_image.draw_image(), Image.open(draw_image.PATH)
    difference = ImageChops.difference(drawn, shown).convert("L").resize((16, 16), Image.Resampling.BOX)
    assert difference.getextrema()[1] < 8  # JPEG, and another version of Pillow
    captions = {re.search(r"^> ([^ \n]+)", text_of(readme), re.MULTILINE)[1] for readme in READMES}
    assert len(captions) == 1
    assert is_right(captions.pop(), draw_image.PRODUCT)


# -------------------------------------------------------------------------------------- what they name exists


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_is_short(readme):
    assert len(text_of(readme).splitlines()) <= 270


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document):
    text, place = text_of(document), (ROOT / document).parent
    links = [target for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text) if not (place / target).exists()]
    named = set(re.findall(r"(?<![\w/])(?:ofa_hf|hub_upload|tests|benchmarks|docs|notebooks)/[\w*/.-]*\w", text))
    assert not links + [path for path in named if not list(ROOT.glob(path))]


@pytest.mark.parametrize("readme", READMES)
def test_every_task_is_in_the_table(readme):
    first_cells = re.findall(r"^\| (`\w+`(?: `\w+`)*) \|", text_of(readme), re.MULTILINE)
    assert set(TASKS) <= set(" ".join(first_cells).replace("`", "").split())


def test_the_tree_of_the_house_is_complete():
    drawn = set(re.findall(r"^[├└]── ([\w/.]+)", text_of("CONTRIBUTING.md"), re.MULTILINE))
    package = ROOT / "ofa_hf"
    files = {file.name for file in package.glob("*.py") if not file.name.startswith("__")}
    assert drawn == files | {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_and_names_of_the_package_exist(document):
    for dotted in set(re.findall(r"\bofa_hf\.(?!git)[\w.]*\w", text_of(document))):
        module, _, name = dotted.rpartition(".")
        found = import_module(module)
        assert hasattr(found, name) or import_module(dotted), dotted


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_and_targets_exist(document):
    text = text_of(document)
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - FOREIGN_OPTIONS - known_options()
    targets = set(re.findall(r"`make ([a-z][\w-]*)", text)) - set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.M))
    assert not options | targets


@functools.cache
def known_options() -> set[str]:
    """Options of every command here: written as `"--name"` in its source, or a field of the training arguments."""
    from transformers import Seq2SeqTrainingArguments

    from ofa_hf.cli import table_options
    from ofa_hf.training.arguments import FinetuneArguments

    folders = ("ofa_hf/cli", "hub_upload", "benchmarks", "tests/stress")
    sources = "".join(file.read_text(encoding="utf-8") for name in folders for file in (ROOT / name).glob("*.py"))
    fields = dataclasses.fields(FinetuneArguments) + dataclasses.fields(Seq2SeqTrainingArguments)
    names = [*(field.name for field in fields), *table_options.OPTIONS]
    return set(re.findall(r'"(--[a-z][\w-]+)"', sources)) | {f"--{name}" for name in names}
