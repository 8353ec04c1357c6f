"""`ofa-hf caption` as a user starts it: a model folder, files and folders."""

import csv
import gc
import json
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor
from ofa_hf.cli import main
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.pages.comparison import plain
from ofa_hf.prediction import files


PIECES = ["[PAD]", "[UNK]", "<", ">", "?", *"图片描述了什么内容一只猫红色的裙子蓝"]


def write_model(place, seed):
    (place / "words.txt").write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    tokenizer = build_tokenizer(place / "words.txt")
    torch.manual_seed(seed)
    sizes = {f"{side}_{name}": 32 for side in ("encoder", "decoder") for name in ("ffn_dim",)}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = OFAConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        resnet_type="resnet18",
        **sizes,
        **heads,
    )
    network = OFAForConditionalGeneration(config)
    network.generation_config.num_beams, network.generation_config.max_length = 2, 6
    network.save_pretrained(place)
    OFAProcessor(OFAImageProcessor(size=32), tokenizer).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("other"), seed=4)


@pytest.fixture
def shop(tmp_path):
    shop, random = tmp_path / "shop", np.random.default_rng(0)
    shop.mkdir()
    for index in range(5):
        pixels = random.integers(0, 256, (40 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(shop / f"{index}.jpg")
    return shop


@pytest.fixture
def caption(capsys):
    """Run the command in this process: `caption(arguments)` → (exit status, stdout, stderr)."""

    def run(*arguments):
        status = main(["caption", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_command_captions_a_folder_past_broken_images(model, shop, forks):
    (shop / "empty.jpg").touch()
    (shop / "text.jpg").write_text("no image")
    command = [sys.executable, "-m", "ofa_hf", "caption", "shop", "--model", str(model), "--batch-size", "2"]
    done = forks.run(command, cwd=shop.parent)
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [f"shop/{index}.jpg" for index in range(5)]
    for problem in ("shop/empty.jpg is empty", "shop/text.jpg is not an image", "5 of 7 images done, 2 not"):
        assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_one_image_gives_one_line_and_more_captions_more_lines(model, shop, caption):
    status, out, _ = caption(shop / "0.jpg", "--model", model)
    assert (status, out.count("\n")) == (0, 1)
    _, out, _ = caption(shop / "0.jpg", "--model", model, "--num-captions", 3, "--json")
    row = json.loads(out)
    assert len(row["captions"]) == 3
    assert row["score"] == row["captions"][0]["score"] < 0


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_an_interrupted_run_is_continued(model, shop, caption, name):
    output = shop.parent / name
    arguments = (shop, "--model", model, "--output", output, "--batch-size", 2)
    assert caption(*arguments)[:2] == (0, "")
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    status, _, err = caption(*arguments)
    assert status == 0
    assert "done before" in err
    text = output.read_text(encoding="utf-8-sig")
    rows = (
        list(csv.DictReader(text.splitlines())) if name.endswith("csv") else list(map(json.loads, text.splitlines()))
    )
    assert [row["file"] for row in rows] == [str(shop / f"{index}.jpg") for index in range(5)]
    assert caption(*arguments)[0] == 0  # nothing is left to do
    assert output.read_text(encoding="utf-8-sig") == text


def test_what_cannot_work_is_one_clear_line(model, shop, tmp_path, caption):
    (tmp_path / "nothing").mkdir()
    for arguments, problem in (
        ((shop, "--model", tmp_path / "nothing"), "is not OFA"),
        ((tmp_path / "nothing", "--model", model), "No images in"),
        ((tmp_path / "nowhere.jpg", "--model", model), "no such file or folder"),
    ):
        status, out, err = caption(*arguments)
        assert (status, out) == (1, "")
        assert problem in err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        caption(shop, "--model", model, "--batch-size", 0)


def test_a_model_that_lacks_weights_is_refused(model, shop, tmp_path, caption):
    shutil.copytree(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights.pop("decoder.layers.0.fc1.weight")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    status, _, err = caption(shop, "--model", tmp_path / "model")
    assert status == 1
    assert "decoder.layers.0.fc1.weight" in err.splitlines()[-1]


def lines_of(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_several_models_make_a_table_of_what_each_says_alone(model, other_model, shop, caption):
    (shop / "broken.jpg").write_text("no image")
    said = {name: dict(lines_of(caption(shop, "--model", name)[1])) for name in (model, other_model)}
    assert said[model] != said[other_model]
    page = shop / "page.html"
    arguments = (shop, "--model", model, "--model", other_model, "--report", page)
    for _ in range(2):  # again, with small images of the first time among the shop's
        status, out, err = caption(*arguments)
        assert (status, out) == (1, f"{page}\n")
        assert err.count("skipped") == 1  # not once a model
        assert err.count("5 of 6 images done, 1 not readable") == 2
        text = page.with_suffix(".md").read_text(encoding="utf-8")
        assert text.count("![](page_files/") == 5
        for file in said[model]:
            row = next(line for line in text.splitlines() if line.startswith("|") and f"{plain(file)} |" in line)
            assert row.split(" | ")[1:] == [plain(said[model][file]), plain(said[other_model][file]) + " |"]
    assert page.read_text(encoding="utf-8").count("<img ") == 5


def test_without_a_page_each_line_names_its_model(model, other_model, shop, caption):
    both = ("--model", model, "--model", other_model)
    _, out, _ = caption(shop, *both)
    lines = lines_of(out)
    assert [line[:2] for line in lines] == [
        [str(shop / f"{index}.jpg"), str(name)] for name in (model, other_model) for index in range(5)
    ]
    _, out, _ = caption(shop / "0.jpg", *both, "--json")
    rows = list(map(json.loads, out.splitlines()))
    assert [row["model"] for row in rows] == [str(model), str(other_model)]
    assert [row["caption"] for row in rows] == [lines[0][2], lines[5][2]]


def test_a_table_is_made_of_captions_that_an_interrupted_run_left(model, other_model, shop, caption):
    output, page = shop.parent / "captions.csv", shop.parent / "page.html"
    arguments = (shop, "--model", model, "--model", other_model, "--output", output, "--report", page)
    assert caption(*arguments)[0] == 0
    whole, table = output.read_bytes(), page.read_text(encoding="utf-8")
    output.write_bytes(whole[: 2 * len(whole) // 3])  # killed in the middle of the second model
    status, _, err = caption(*arguments)
    assert status == 0
    assert "0 of 5 images done, 0 not readable, 5 done before" in err
    assert page.read_text(encoding="utf-8") == table
    rows = list(csv.DictReader(output.read_text(encoding="utf-8-sig").splitlines()))
    assert sorted((row["model"], row["file"]) for row in rows) == sorted(
        (str(name), str(shop / f"{index}.jpg")) for name in (model, other_model) for index in range(5)
    )


def test_one_model_is_in_memory_at_a_time(model, other_model, shop, caption, monkeypatch):
    networks, load = [], files.load_model

    def load_and_remember(*arguments, **options):
        gc.collect()
        assert not [network for network in networks if network() is not None], "the one before is still there"
        loaded = load(*arguments, **options)
        networks.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(files, "load_model", load_and_remember)
    assert caption(shop, "--model", model, "--model", other_model, "--report", shop.parent / "page.md")[0] == 0
    assert len(networks) == 2
    assert not (shop.parent / "page.html").exists()


def test_a_comparison_that_cannot_work_ends_before_it_begins(model, shop, tmp_path, caption, monkeypatch):
    monkeypatch.setattr(files, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "mine.html").write_text("years of work")
    for arguments, problem in (
        (
            ("--model", tmp_path / "mistyped", "--report", tmp_path / "page.html"),
            "is neither a folder on this machine",
        ),
        (("--report", tmp_path / "page.pdf"), "no known suffix"),
        (("--report", tmp_path / "mine.html"), "would replace"),
    ):
        status, out, err = caption(shop, "--model", model, *arguments)
        assert (status, out) == (1, "")
        assert problem in err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        caption(shop, "--model", model, "--report", tmp_path / "page.html", "--json")
