"""Promises of the commands that answer: one engine for images, tables and texts, whatever the task."""

import csv
import io
import json
import os
import sys

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.cli import main
from ofa_hf.errors import UserError
from ofa_hf.models import load_model
from ofa_hf.pages import comparison
from ofa_hf.prediction import drawing, files
from ofa_hf.prediction.loop import predict


TASKS = {
    "caption": {},
    "grounding": {"prompt": "红色的{text}"},
    "ocr": {"image": {"fit": "stretch"}},
    "vqa": {},
    "classification": {"prompt": "图片描述了什么内容?"},
    "summarization": {"prompt": "{article}"},
    "entailment": {"prompt": "{hypothesis}?", "choices": ["红", "绿", "蓝"]},
    "region": {"prompt": "红{box}"},
    "sst2": {"prompt": "{sentence}?", "choices": ["好看", "很"]},
}
SHORT = ("--max-length", "6", "--num-beams", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_shop.write_model(tmp_path_factory.mktemp("answering") / "model", TASKS))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with three images below it, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, (name, colour) in enumerate(list(tiny_shop.COLOURS.items())[:3]):
        place = tmp_path / "shop" / f"{number}"
        place.mkdir(parents=True)
        Image.new("RGB", (60 + number, 50), colour).save(place / f"{name}.png")
    return tmp_path / "shop"


@pytest.fixture
def ask(model, capsys):
    """`ask(command, *arguments)` → (exit status, stdout, stderr)."""

    def run(command, *arguments):
        status = main([command, *map(str, arguments), "--model", model])
        return status, *capsys.readouterr()

    return run


def rows_of(path) -> list[dict]:
    text = path.read_text(encoding="utf-8-sig")
    return (
        list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else list(map(json.loads, text.splitlines()))
    )


def test_phrases_are_located_in_pixels_with_probabilities_and_a_box_per_line(ask, shop):
    status, out, err = ask("ground", "shop", "--text", "方块", "--text", "红", "--json")
    rows = list(map(json.loads, out.splitlines()))
    assert status == 0, err
    assert [row["text"] for row in rows] == ["方块", "红"] * 3
    assert [row["file"].split("/")[1] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert [(row["width"], row["height"]) for row in rows[::2]] == [(60, 50), (61, 50), (62, 50)]
    assert all(0 < row["score"] < 1 for row in rows)
    for row in rows:  # the places of this model reach far beyond its small images
        assert 0 <= row["box"]["xmin"] <= row["box"]["xmax"] <= row["width"]
        assert 0 <= row["box"]["ymin"] <= row["box"]["ymax"] <= row["height"]
    _, printed, _ = ask("ground", "shop", "--text", "方块")
    boxes = [line.split("\t")[2] for line in printed.splitlines()]
    expected = [",".join(f"{row['box'][side]:g}" for side in ("xmin", "ymin", "xmax", "ymax")) for row in rows[::2]]
    assert [list(map(float, box.split(","))) for box in boxes] == [
        pytest.approx(list(map(float, box.split(","))), rel=1e-3) for box in expected
    ]


def test_a_box_below_the_threshold_is_not_there_and_its_score_is_that_of_its_tokens(ask, shop, model):
    _, out, _ = ask("ground", "shop", "--text", "方块", "--json", "--num-answers", 2)
    scores = [row["score"] for row in map(json.loads, out.splitlines())]
    loaded = load_model(model)
    image = Image.open(shop / "0" / "红.png")
    rows = [{"id": 0, "image": image, "text": "方块"}]
    (found,) = predict(*loaded, rows, task="grounding", num_answers=2, return_scores=True)
    assert scores[0] == pytest.approx(2.718281828 ** found.answers[0]["score"], rel=1e-4)
    middle = sorted(scores)[1]
    _, out, _ = ask("ground", "shop", "--text", "方块", "--threshold", f"{middle + 1e-9:.12f}", "--json")
    assert [json.loads(line)["box"] is None for line in out.splitlines()] == [score <= middle for score in scores]
    _, out, _ = ask("ground", "shop", "--text", "方块", "--threshold", "1")
    assert [line.split("\t")[2] for line in out.splitlines()] == ["none"] * 3


@pytest.mark.parametrize("name", ["boxes.jsonl", "boxes.csv"])
def test_a_run_that_was_killed_goes_on_and_draws_and_writes_coco(ask, shop, tmp_path, monkeypatch, name):
    monkeypatch.setattr(drawing, "chinese_font", lambda: None)
    more = ("--output", name, "--coco", "out/boxes.json", "--draw", "drawn", "--num-answers", 2)
    arguments = ("shop", "--text", "方块", "--text", "红", *more)
    assert ask("ground", *arguments)[0] == 0
    output, coco = tmp_path / name, tmp_path / "out" / "boxes.json"
    whole, first = output.read_bytes(), json.loads(coco.read_text(encoding="utf-8"))
    drawn = {file.relative_to(tmp_path / "drawn").as_posix() for file in (tmp_path / "drawn").rglob("*.png")}
    assert drawn == {"0/红.png", "1/绿.png", "2/蓝.png"}
    assert Image.open(tmp_path / "drawn" / "0" / "红.png").size == (60, 50)
    output.write_bytes(whole[: len(whole) // 2])
    status, _, err = ask("ground", *arguments)
    assert status == 0
    assert "done before" in err
    assert err.count("no font of this machine has Chinese") == 1
    assert output.read_bytes() == whole
    again = json.loads(coco.read_text(encoding="utf-8"))
    assert again == first
    assert [image["file_name"] for image in again["images"]] == ["0/红.png", "1/绿.png", "2/蓝.png"]
    assert [(image["width"], image["height"]) for image in again["images"]] == [(60, 50), (61, 50), (62, 50)]
    assert [category["name"] for category in again["categories"]] == ["方块", "红"]
    assert len(again["annotations"]) + again["info"]["boxes_without_area"] == 12


def test_a_page_shows_boxes_of_several_phrases(ask, shop, tmp_path):
    status, out, err = ask("ground", "shop", "--text", "方块", "--text", "<红>", "--report", "page.html")
    assert (status, out) == (0, "page.html\n"), err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6
    assert "&lt;红&gt;" in page


def test_a_page_shows_the_box_that_was_asked_about(ask, shop, tmp_path):
    file, box = shop / "0" / "红.png", "10,10,50,40"
    assert ask("caption", file, "--task", "region", "--field", f"box={box}", "--report", "page.md", *SHORT)[0] == 0
    with Image.open(tmp_path / "page_files" / "000001.jpg") as image:
        inside, edge = (
            image.getpixel((image.width // 2, image.height // 2)),
            image.getpixel((image.width // 6, image.height // 2)),
        )
    assert max(abs(one - other) for one, other in zip(inside, edge, strict=True)) > 60
    assert comparison.read_thumbnail(str(file)) == comparison.read_thumbnail(str(file), asked="0,0,99,10")


def test_drawings_never_overwrite_what_is_there(ask, shop, tmp_path):
    before = (shop / "0" / "红.png").read_bytes()
    status, _, err = ask("ground", "shop", "--text", "红", "--draw", "shop")
    assert (status, "was not written by this command" in err) == (1, True)
    assert ask("ground", "shop", "--text", "红", "--draw", "shop/drawn")[0] == 0
    status, _, err = ask("ground", "shop", "--text", "红", "--draw", "shop/drawn")  # drawn images are no inputs
    assert (status, "3 of 3 rows done" in err) == (0, True)
    status, _, err = ask("ground", "shop/drawn/0", "--text", "红", "--draw", "shop/drawn")
    assert status == 1
    assert (shop / "0" / "红.png").read_bytes() == before


def test_a_table_asks_its_own_questions_and_reports_rows_that_cannot_be_asked(ask, shop, tmp_path):
    table = tmp_path / "shop" / "questions.csv"
    lines = [
        "图片,问题",
        "0/红.png,什么颜色",
        "1/绿.png,好看?",
        "2/蓝.png,",
        ",什么",
        "0/红.png,1/绿.png",
        "0/红,方块?",
        "gone.png,红?",
    ]
    table.write_text("\n".join([*lines, lines[1], f"0/红.png,{'红' * 90}"]) + "\n", encoding="utf-8")
    status, _, err = ask("vqa", "shop/questions.csv", "--output", "answers.csv", *SHORT)
    assert status == 1
    rows = rows_of(tmp_path / "answers.csv")
    assert [row["file"] for row in rows] == ["shop/0/红.png", "shop/1/绿.png", "shop/0/红.png"]
    assert [row["question"] for row in rows] == ["什么颜色", "好看?", "方块?"]
    for problem in (
        "line 4: cannot be asked: question is empty",
        "line 5: no image",
        "is the name of an image, where a text belongs",
        "line 8: no image: gone.png: no such file",
        "is read as csv, utf-8, separator ',', image in column 图片, question in column 问题.",
        "Names of images repaired: 1 × suffix missing.",
        "tokens, but at most",
        "1 row was repeated",
        "3 of 8 rows done, 5 not answered",
    ):
        assert problem in err, problem


def test_answers_of_a_list_are_scored_and_what_cannot_be_chosen_is_left_out_and_said(ask, shop, tmp_path):
    (tmp_path / "labels.txt").write_text("红\n绿色\n\n红\nxyz\n蓝\n", encoding="utf-8")
    status, out, err = ask("classify", "shop", "--labels", "labels.txt", "--num-answers", 3, "--json")
    assert status == 0
    rows = list(map(json.loads, out.splitlines()))
    assert all({one["label"] for one in row["labels"]} == {"红", "绿色", "蓝"} for row in rows)
    assert all(sum(one["score"] for one in row["labels"]) == pytest.approx(1, abs=1e-4) for row in rows)
    for left_out in (
        "1 empty (line 3)",
        "1 the same as an earlier one",
        "(line 4: 红)",
        "not in the vocabulary (line 5: xyz)",
    ):
        assert left_out in err
    _, out, _ = ask("vqa", "shop/0", "--question", "什么颜色?", "--answers", "红，绿", "--answers", "蓝")
    assert out.strip().split("\t")[-1] in ("红", "绿", "蓝")
    status, _, err = ask("classify", "shop")
    assert (status, "chooses from a list of answers, but none was given" in err) == (1, True)
    status, _, err = ask("classify", "shop", "--labels", "xyz")
    assert (status, "None of 1 answers can be chosen" in err) == (1, True)
    status, _, err = ask("classify", "shop", "--labels", "gone.txt")
    assert (status, "gone.txt does not exist" in err) == (1, True)


def test_each_model_chooses_among_the_answers_that_its_own_vocabulary_has(ask, shop, model, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_shop, "WORD_PIECES", [*tiny_shop.WORD_PIECES, "紫"])
    other = str(tiny_shop.write_model(tmp_path / "other", TASKS))
    labels = ("--labels", "红,绿,紫", "--num-answers", 3, "--json")
    status, out, err = ask("classify", "shop/0", *labels, "--model", other)
    assert status == 0, err
    found = {row["model"]: {one["label"] for one in row["labels"]} for row in map(json.loads, out.splitlines())}
    assert found == {other: {"红", "绿", "紫"}, model: {"红", "绿"}}
    assert f"not used as answers by {model}: 1 with words that are not in the vocabulary (answer 3: 紫)." in err


def test_texts_are_summarized_from_arguments_lines_tables_and_stdin(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    articles = ["红色的方块很好看", "一个绿色方块"]
    (tmp_path / "articles.txt").write_text("\n".join(articles) + "\n\n", encoding="gb18030")
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps({"article": text}) + "\n" for text in articles))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(articles)))
    given = [(each, *SHORT) for each in ("articles.txt", "articles.jsonl", "-")] + [(*articles, *SHORT)]
    outs = [ask("summarize", *arguments)[1] for arguments in given]
    assert len(outs[0].splitlines()) == 2
    assert outs == outs[:1] * 4
    ask("summarize", "articles.txt", "--output", "s.jsonl", *SHORT)
    rows = rows_of(tmp_path / "s.jsonl")
    assert [row["article"] for row in rows] == articles
    assert [row["summary"] for row in rows] == outs[0].splitlines()
    status, _, err = ask("summarize", "articels.csv")
    assert (status, "articels.csv" in err) == (1, True)


def test_other_tasks_of_the_checkpoint_are_named_and_asked(ask, shop, tmp_path):
    _, out, _ = ask("vqa", "shop", "--task", "entailment", "--field", "hypothesis=红色", "--json")
    rows = list(map(json.loads, out.splitlines()))
    assert [row["hypothesis"] for row in rows] == ["红色"] * 3
    assert {row["answer"] for row in rows} <= {"红", "绿", "蓝"}
    _, out, _ = ask("caption", "shop/0", "--task", "region", "--field", "box=1,2,30,40", "--json", *SHORT)
    assert json.loads(out)["box"] == "1,2,30,40"
    status, _, err = ask("caption", "shop", "--task", "region", "--field", "box=1,2,61,40", *SHORT)
    assert (status, err.count("does not fit an image of 60×50 pixels")) == (1, 1)  # the others are wider
    status, _, err = ask("caption", "shop", "--task", "region", "--field", "box=left", *SHORT)
    assert (status, "is not a box" in err) == (1, True)
    (tmp_path / "s.csv").write_text("sentence\n真不错\n", encoding="utf-8")
    _, out, _ = ask("classify", "s.csv", "--task", "sst2")
    assert out.strip() in ("好看", "很")
    _, out, err = ask("ocr", "shop", "--json", *SHORT)
    assert "3 of 3 images done" in err, err
    assert [list(json.loads(line)) for line in out.splitlines()] == [["file", "text", "score"]] * 3


def test_a_model_that_only_draws_sends_the_user_to_the_command_that_draws(tmp_path):
    model = tiny_shop.write_model(tmp_path / "drawer", tasks={"image_generation": {"prompt": "画{text}"}})
    for task in (None, "caption"):
        with pytest.raises(UserError, match="answers with images. Draw them with `ofa-hf draw`"):
            files.the_task("caption", [str(model)], task)


def test_what_cannot_work_is_refused_before_a_model_is_loaded(ask, shop, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "t.csv").write_text("image,q\n0.png,红?\n", encoding="utf-8")
    (tmp_path / "file").touch()
    for arguments, problem in (
        (("caption", "shop", "--task", "draw"), "has no task 'draw', which ofa-hf caption needs. Its tasks: caption"),
        (("ground", "shop"), "asks about text, but only images were given. Pass --text "),
        (("vqa", "shop", "--task", "entailment"), "Pass --field hypothesis="),
        (("caption", "shop", "--task", "region"), "Pass --field box="),
        (("classify", "shop"), "Pass --labels FILE_OR_LIST."),
        (("caption", "shop", "--task", "classification"), "Ask it with ofa-hf classify."),
        (("summarize", ""), "Nothing to answer in an empty text: it has no rows."),
        (("caption", "shop", "--output", "x.pdf"), "Accepted: .csv, .jsonl (one JSON object per line) and .xlsx."),
        (("vqa", "shop", "--question", "shop/0/红.png"), "is the name of an image, where a text belongs"),
        (("vqa", "shop", "--question", " "), "is empty"),
        (("vqa", "t.csv"), "t.csv has no column question; it has image, q"),
        (("ocr", "shop", "--field", "text=红"), "asks about nothing but the image"),
        (("ground", "shop", "--text", "红", "--output", "file/boxes.csv"), "file/boxes.csv cannot be written"),
        (("ground", "shop", "--text", "红", "--coco", "boxes.txt"), "does not end in .json"),
        (("ground", "shop", "--text", "红", "--task", "caption", "--draw", "drawn"), "not about text"),
        (
            (
                "ocr",
                "--task",
                "vqa",
                "shop",
                "--field",
                "question=红",
                "--output",
                "x.csv",
                "--num-answers",
                "3",
                *SHORT,
            ),
            "2 beams",
        ),
    ):
        status, out, err = ask(*arguments)
        assert (status, out) == (1, ""), arguments
        assert problem in err.splitlines()[-1], arguments


def test_a_language_the_model_does_not_read_is_said_once(ask, shop, caplog):
    _, _, err = ask("vqa", "shop", "--question", "what is this", "--question", "什么?", *SHORT)
    assert err.count("are English, but the model reads Chinese") == 1
    assert "3 rows are English" in err
    assert "was asked in English" not in caplog.text
    _, _, err = ask("vqa", "shop/0", "--question", "what is this", *SHORT)
    assert "1 row is English" in err
    _, _, err = ask("vqa", "shop", "--question", "红 " * 2000, *SHORT)
    assert "3 rows were longer than the model was trained with and are cut" in err


def test_rows_are_resumed_from_another_folder(ask, shop, tmp_path, monkeypatch):
    output = tmp_path / "a.jsonl"
    assert ask("vqa", "shop", "--question", "红?", "--output", output, *SHORT)[0] == 0
    whole = output.read_bytes()
    monkeypatch.chdir(shop)
    output.write_bytes(whole)
    _, _, err = ask("vqa", tmp_path / "shop", "--question", "红?", "--output", output, *SHORT)
    assert "0 of 3 rows done" in err or output.read_bytes() != whole  # relative names are another place's
    monkeypatch.chdir(tmp_path)
    _, _, err = ask("vqa", os.path.join(".", "shop"), "--question", "红?", "--output", output, *SHORT)
    assert "3 done before" in err
