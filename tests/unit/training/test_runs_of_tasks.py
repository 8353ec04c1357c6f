"""Runs of every kind of answer, of several tasks and of the columns of a table, from files to scores."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_shop import COLOURS, SIDE, weights

from ofa_hf import tasks_ofa
from ofa_hf.cli import main
from ofa_hf.errors import UserError
from ofa_hf.models import load_processor
from ofa_hf.tasks_ofa import Task
from ofa_hf.training import finetuning


NUM_ROWS = 12


def product(number: int) -> tuple[str, Image.Image]:
    """Colour and image of a product."""
    colour, value = list(COLOURS.items())[number % 2]
    return colour, Image.new("RGB", (SIDE + number % 3, SIDE), value)


@pytest.fixture
def table(tmp_path):
    """Writes a table with its folder of images; returns the arguments that name both, for training and scoring."""

    def write(header: str, line) -> dict[str, str]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        path = tmp_path / f"{header.replace(',', '-')}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(header.split(","))
            for number in range(NUM_ROWS):
                colour, image = product(number)
                image.save(folder / f"{number}.png")
                lines.writerow(line(number, f"{number}.png", colour))
        files = {"train_caption_file": str(path), "train_image_file": str(folder)}
        return {**files, **{name.replace("train", "test"): value for name, value in files.items()}}

    return write


SHORT = {"max_steps": 2, "targets_per_row": 1, "per_device_train_batch_size": 4}


def test_boxes_are_learned_and_scored_and_those_outside_are_reported(train, table, capsys):
    boxes = {3: "20,20,10,10", 4: "1,1,900,20", 5: "a,b"}
    files = table("image,text,box", lambda n, image, colour: [image, f"{colour}色", boxes.get(n, "0,0,16.5,32")])
    ran = train(**files, **SHORT, task="grounding")
    assert {"eval_box_accuracy", "eval_mean_iou"} <= ran.metrics.keys()
    messages = capsys.readouterr().err
    assert "9 rows with 9 targets; skipped: 3 × unfit answer" in messages
    assert load_processor(ran.folder).default_task == "grounding"
    scores = evaluate(ran.folder, files, capsys)
    assert scores["num_rows"] == 11, "boxes of an image that nobody opens are not measured"
    assert {"box_accuracy", "mean_iou"} <= scores.keys()


def evaluate(model, files, capsys, *options) -> dict[str, float]:
    """What `ofa-hf evaluate` says of a model on the files that it was scored on."""
    names = ["--model", str(model), "--captions", files["test_caption_file"], "--images", files["test_image_file"]]
    capsys.readouterr()
    assert main(["evaluate", *names, "--device", "cpu", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_answers_with_confidences_train_the_best_and_are_scored_by_all(train, table, monkeypatch):
    def line(number, image, colour):
        return [f"{number // 2 * 2}.png", "什么色", colour, 0.3 if number % 2 else 0.9]

    batches = []
    original = finetuning.OFATrainer.compute_loss
    monkeypatch.setattr(
        finetuning.OFATrainer,
        "compute_loss",
        lambda self, model, inputs, *rest, **named: (
            batches.append(inputs) or original(self, model, inputs, *rest, **named)
        ),
    )
    ran = train(**table("image,question,answer,confidence", line), **SHORT, task="vqa")
    assert "eval_vqa_accuracy" in ran.metrics
    assert all(batch["confidences"].tolist() == pytest.approx([0.9] * 4) for batch in batches)
    assert len(batches) == 2
    for batch in batches:  # the question comes first, and the loss is of the answer and its end
        assert set((batch["labels"] != -100).sum(1).tolist()) <= {0, 2}
        assert torch.equal(
            batch["decoder_input_ids"][:, : batch["input_ids"].shape[1] - 1], batch["input_ids"][:, :-1]
        )


def test_a_list_of_answers_is_made_of_the_data(train, table, monkeypatch, tmp_path):
    task = Task(
        name="colour", prompts={"zh": "{thing}是什么色?"}, answer="choice", starts_with="question", metric="accuracy"
    )
    monkeypatch.setitem(tasks_ofa.TASKS, "colour", task)
    files = table("image,thing,colour", lambda n, image, colour: [image, "方块", colour])
    ran = train(**files, **SHORT, task="colour")
    assert 0 <= ran.metrics["eval_accuracy"] <= 100
    assert load_processor(ran.folder).tasks["colour"]["choices"] == ["红", "绿"]

    (tmp_path / "choices.txt").write_text("红\n蓝\n", encoding="utf-8")
    files = table("image,thing,colour", lambda n, image, colour: [image if n % 2 else "gone", "方块", colour])
    with pytest.raises(UserError, match="no usable row, but 6 × .*6 × unfit answer"):
        train("other", **files, **SHORT, task="colour", choices_file=str(tmp_path / "choices.txt"))


COLUMNS = ("色", "内色", "黑白")  # of a product: above, below, and the stripe at its side


def write_products(folder: Path, count: int, with_gaps: bool) -> dict[str, str]:
    """A table of drawn products of three attributes, some cells of which may be empty, and its folder of images."""
    folder.mkdir()
    with (folder / "products.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["图片", *COLUMNS, "标题"])
        for number in range(count):
            cells = ["红绿"[number % 2], "蓝黄"[number // 2 % 2], "黑白"[number // 4 % 2]]
            image = Image.new("RGB", (SIDE + number % 5, SIDE + number % 3), COLOURS[cells[0]])
            image.paste(COLOURS[cells[1]], (0, SIDE // 2, SIDE + 5, SIDE + 3))
            image.paste(COLOURS[cells[2]], (0, 0, 8, SIDE + 3))
            image.save(folder / f"{number}.png")
            if with_gaps and number % 8 == 0:
                cells[number // 8 % 3] = ""
            lines.writerow([f"{number}.png", *cells, f"方块{'很' * (number % 5)}{'好' * (number // 5)}"])
    return {"caption_file": str(folder / "products.csv"), "image_file": str(folder)}


def test_the_columns_of_a_table_are_learned_scored_and_filled(train, tmp_path, capsys):
    seen, new = write_products(tmp_path / "seen", 24, True), write_products(tmp_path / "new", 15, False)
    files = {f"train_{name}": path for name, path in seen.items()} | {f"test_{n}": path for n, path in new.items()}
    fast = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "dropout": 0.0, "freeze_encoder": False}
    options = {"max_steps": 60, "per_device_train_batch_size": 24, "targets_per_row": 1, **fast}
    ran = train(**files, **options, columns=[*COLUMNS, "标题"])
    messages = capsys.readouterr().err
    assert "column 内色  one of 2 values, 1 of 24 cells are empty" in messages
    assert "column 标题  free text" in messages

    tasks = load_processor(ran.folder).tasks
    assert tasks["色"] == {
        "prompt": "这件商品的色是什么?",
        "answer": "choice",
        "choices": tasks["色"]["choices"],
        "labels": {},
        "metric": "accuracy",
    }
    assert sorted(tasks["色"]["choices"]) == ["红", "绿"]
    assert tasks["标题"] == {"prompt": "这件商品的标题是什么?", "answer": "text", "metric": "ocr"}

    card = (ran.folder / "README.md").read_text(encoding="utf-8")
    assert f"内色 Accuracy {ran.metrics['eval_内色_accuracy']:.2f}" in card
    assert f"内色 Accuracy {ran.metrics['eval_内色_accuracy']:.4f}" in messages

    scores = evaluate(ran.folder, files, capsys, "--columns", *COLUMNS)
    assert scores["accuracy"] >= 95
    assert scores["num_cells"] == 45
    assert scores["色_accuracy"] == ran.metrics["eval_色_accuracy"]
    nothing = ["evaluate", "--model", str(ran.folder), "--captions", new["caption_file"], "--columns", "产地"]
    assert main(nothing) == 1
    said = capsys.readouterr().err
    assert "cannot fill 产地. Columns that it knows: " in said
    assert all(column in said for column in COLUMNS)
    assert {"eval_标题_accuracy", "eval_标题_ned", "eval_mean_score"} <= ran.metrics.keys()

    filled = tmp_path / "filled.csv"
    words = [new["caption_file"], new["image_file"], "--model", str(ran.folder), "--output", str(filled)]
    assert main(["fill", *words, "--overwrite", "--columns", *COLUMNS, "--device", "cpu"]) == 0
    with open(new["caption_file"], encoding="utf-8") as true, filled.open(encoding="utf-8-sig") as found:
        pairs = zip(csv.DictReader(true), csv.DictReader(found), strict=True)
        right = [own[name] == answer[name] for own, answer in pairs for name in COLUMNS]
    assert sum(right) / len(right) == pytest.approx(scores["accuracy"] / 100)


def test_several_tasks_share_a_run_by_weight_each_is_scored_and_it_resumes(train, table, shop, monkeypatch, capsys):
    boxes = table("image,text,box", lambda n, image, colour: [image, f"{colour}色", "0,0,16,32"])
    captions = {name: shop[name] for name in shop if name.endswith("_file")}
    tasks = {"caption": {"weight": 2, **captions}, "grounding": boxes}
    lengths = []
    original = finetuning.OFATrainer.compute_loss
    monkeypatch.setattr(
        finetuning.OFATrainer,
        "compute_loss",
        lambda self, model, inputs, *rest, **named: (
            lengths.append(inputs["input_ids"].shape[1]) or original(self, model, inputs, *rest, **named)
        ),
    )
    options = {"num_train_epochs": 1, "targets_per_row": 4, "per_device_train_batch_size": 48, "dropout": 0.0}
    options |= {"tasks": tasks, "save_strategy": "steps", "save_steps": 1, **dict.fromkeys(captions)}
    ran = train(**options)
    assert {"eval_caption_cider_d", "eval_grounding_box_accuracy", "eval_mean_score"} <= ran.metrics.keys()
    assert len(lengths) == 2 + 1, "twelve images with four captions twice, twelve boxes once"
    assert "weight 2" in capsys.readouterr().err

    before, order = weights(ran.folder), list(lengths)
    for later in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(ran.folder / later)
    train(**options, resume_from_checkpoint=True)
    assert lengths[3:] == order[1:]
    after = weights(ran.folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tasks": {"caption": {"colour": 1}}}, "tasks has colour for caption; it must be an object of choices_file"),
        ({"tasks": {"caption": {"weight": 0}}}, "The weight of the task caption is 0; it must be a number above 0"),
        ({"tasks": {"caption": {}}, "task": "caption"}, "task and tasks both say what to train"),
        ({"columns": ["色"], "closed_columns": ["号"]}, "closed_columns has 号, which is not among columns"),
        ({"data_format": "mine"}, "data_format is 'mine'; it must be official"),
        ({"columns": "色"}, "columns is '色'; it must be a list of strings or null"),
    ],
)
def test_arguments_that_say_two_things_are_refused(parse, changes, why):
    with pytest.raises(UserError, match=why):
        parse(**changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"tasks": {"caption": {}, "ocr": {}}, "cache_encoder_outputs": True},
            "tasks has several. Drop cache_encoder",
        ),
        ({"task": "grounding", "data_format": "official"}, "files contain their images, but .* was also given"),
        ({"columns": ["caption"]}, "The column caption has the name of the task caption"),
        (
            {"columns": ["色"], "dataset_name": "x", "train_caption_file": None, "train_image_file": None},
            "dataset_name",
        ),
    ],
)
def test_runs_that_cannot_be_are_refused_before_a_model_is_loaded(train, monkeypatch, changes, why):
    monkeypatch.setattr(finetuning, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=why):
        train(**changes)


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def test_the_originals_files_train_as_they_are(train, tmp_path, shop):
    path = tmp_path / "refcoco_cn.tsv"
    rows = [(product(number), number) for number in range(NUM_ROWS)]
    lines = [f"{n}\t{colour}色\t0,0,16.5,20\t{encoded(image)}\n" for (colour, image), n in rows]
    path.write_text("".join(lines) + "broken line\n", encoding="utf-8")
    nothing = {name: None for name in shop if name.endswith("_image_file")}
    files = {"train_caption_file": str(path), "test_caption_file": str(path)}
    ran = train(**nothing, **files, **SHORT, task="grounding")
    assert "eval_box_accuracy" in ran.metrics
    pipelines = json.loads((ran.folder / "config.json").read_text(encoding="utf-8"))["custom_pipelines"]
    assert set(pipelines) == {"zero-shot-object-detection", "image-to-text"}  # the base model captions
