"""A stranger with a spreadsheet's export, a folder from a phone and Windows paths gets to a model of their own.

The commands run in this process, since each process of its own takes seconds to start.
"""

import csv
import json
import os
import re

import pytest
import tiny_shop
import torch
from PIL import Image

from ofa_hf.cli import main


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """`商品.csv` as a Chinese Excel saves it on Windows, `手机` as a phone fills it, and a model."""
    folder = tmp_path_factory.mktemp("shop")
    photos = folder / "手机" / "DCIM"
    photos.mkdir(parents=True)
    lines = ["商品编号;图片;标题"]
    for number, (name, colour) in enumerate(tiny_shop.COLOURS.items()):
        Image.new("RGB", (64, 48), colour).save(photos / f"IMG_000{number}.JPG")
        lines.append(f"00{number};D:\\店铺\\DCIM\\img_000{number}.jpg;{name}色的方块，很好看")
    lines += [
        "007;D:\\店铺\\DCIM\\IMG_0009.jpg;没有这张图",
        '008;D:\\店铺\\DCIM\\IMG_0001.JPG;"红色',
        "009;x.jpg;多;一个",
    ]
    (folder / "商品.csv").write_bytes("\r\n".join(lines).encode("gbk"))
    for name in ("IMG_0001.MOV", "._IMG_0001.JPG", ".DS_Store", "IMG_0007.HEIC"):
        (photos / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    tiny_shop.write_model(folder / "model")
    return folder


@pytest.fixture
def ask(shop, monkeypatch, capsys):
    """Run a command in the shop's folder; returns status, stdout and stderr."""
    monkeypatch.chdir(shop)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        return (status, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


CACHE = ("--cache_dir", "cache")


def test_from_check_to_a_finetuned_model_without_a_word_of_documentation(ask, shop, caplog):
    status, out, _ = ask("check", "商品.csv", "手机", "--model", "model", "--report", "check.html", "--json", *CACHE)
    assert status == 0
    found = json.loads(out.splitlines()[-1])
    assert (found["images"], found["captions"]) == (6, 6)
    assert found["assumed"] == {
        "kind": "csv",
        "encoding": "gb18030",
        "separator": ";",
        "columns": {"image": "图片", "caption": "标题"},
    }
    assert found["problems"] == {
        "malformed line": 2,
        "targets without image": 1,
        "caption with characters not in the vocabulary": 6,
    }
    assert found["unknown_characters"] == {"，": 6}
    assert found["repaired"].keys() >= {"backslashes", "drive letter", "folder in front", "upper or lower case"}
    assert sum(count for kind, count in found["left_out"].items() if "HEIC" in kind or kind == "video") == 2
    assert (shop / "check.html").stat().st_size > 1000

    words = ["--model_name_or_path", "model", "--train_caption_file", "商品.csv", "--train_image_file", "手机"]
    words += [
        "--output_dir",
        "out",
        "--max_steps",
        2,
        "--per_device_train_batch_size",
        4,
        "--report_to",
        "none",
        *CACHE,
    ]
    status, out, err = ask("finetune", *words, "--json", "--use_cpu", "true", "--disable_tqdm", "true")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == 2
    assert len(re.findall(r"^Data: .*6 × caption with characters not in the vocabulary.*，", err, re.M)) == 1
    assert "gb18030" in caplog.text

    status, _, err = ask("caption", "手机", "--model", "out", "--output", "captions.csv", "--device", "cpu")
    assert status == 0, err
    assert "6 of 6 images done" in err
    assert "1 × video" in caplog.text
    rows = list(csv.DictReader((shop / "captions.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert len(rows) == 6


def test_what_one_command_takes_and_writes_the_others_take(ask, shop):
    """What `caption` writes is scored, trained on and reviewed, also after a spreadsheet has saved it again."""
    status, _, err = ask("caption", "手机", "--model", "model", "--output", "own.csv", "--device", "cpu")
    assert status == 0, err
    text = (shop / "own.csv").read_text(encoding="utf-8-sig").replace(",", ";").replace("\n", "\r\n")
    (shop / "own.csv").write_bytes(text.encode("gb18030"))
    (shop / "more").mkdir()
    Image.new("RGB", (64, 48), "red").save(shop / "more" / "新.png")
    before = (shop / "own.csv").read_bytes()
    status, _, err = ask("caption", "手机", "more", "--model", "model", "--output", "own.csv", "--device", "cpu")
    assert (status, "6 done before" in err) == (0, True)
    after = (shop / "own.csv").read_bytes()
    assert after.startswith(before)
    assert "more/新.png;".encode("gb18030") in after[len(before) :]

    lines = (shop / "商品.csv").read_bytes().decode("gbk").splitlines()[:7]
    (shop / "right.csv").write_bytes("\r\n".join(lines).encode("gbk"))
    status, out, err = ask(
        "evaluate", "--model", "model", "--captions", "right.csv", "--images", "手机", "--json", "--device", "cpu"
    )
    assert (status, json.loads(out)["num_images"]) == (0, 6), err
    (shop / "own.csv").write_bytes(before)
    status, out, err = ask("evaluate", "--predictions", "own.csv", "--captions", "right.csv", "--json")
    assert (status, json.loads(out)["num_images"]) == (0, 6), err
    status, out, err = ask("check", "own.csv", "手机", "--json", *CACHE)
    assert (status, json.loads(out)["images"]) == (0, 6), err
    assert os.path.exists(shop / "own.csv")
