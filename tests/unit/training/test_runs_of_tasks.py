"""Runs of every kind of answer, of several tasks and of the columns of a table, from files to scores."""

import base64
import csv
import io
import json

import pytest
import torch
from PIL import Image
from tiny_shop import COLOURS, SIDE

from ofa_hf import tasks_ofa
from ofa_hf.cli import main
from ofa_hf.errors import UserError
from ofa_hf.models import load_processor
from ofa_hf.tasks_ofa import Task
from ofa_hf.training import finetuning


SIZES = {"大": SIDE + 16, "小": SIDE}
NUM_ROWS = 12


def product(number: int) -> tuple[str, str, Image.Image]:
    """Colour, size and image of a product."""
    colour, value = list(COLOURS.items())[number % 2]
    size, side = list(SIZES.items())[number % 3 % 2]
    return colour, size, Image.new("RGB", (side, SIDE), value)


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
                colour, size, image = product(number)
                image.save(folder / f"{number}.png")
                lines.writerow(line(number, f"{number}.png", colour, size))
        files = {"train_caption_file": str(path), "train_image_file": str(folder)}
        return {**files, **{name.replace("train", "test"): value for name, value in files.items()}}

    return write


SHORT = {"max_steps": 2, "targets_per_row": 1, "per_device_train_batch_size": 4}


def test_boxes_are_learned_and_scored_and_those_outside_are_reported(train, table, capsys):
    boxes = {3: "20,20,10,10", 4: "1,1,900,20", 5: "a,b"}
    files = table("image,text,box", lambda n, image, colour, _: [image, f"{colour}色", boxes.get(n, "0,0,16.5,32")])
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
    def line(number, image, colour, _):
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
    files = table("image,thing,colour", lambda n, image, colour, _: [image, "方块", colour])
    fast = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "dropout": 0.0, "freeze_encoder": False}
    ran = train(**files, **{**SHORT, "max_steps": 40}, **fast, task="colour")
    assert ran.metrics["eval_accuracy"] == 100
    assert load_processor(ran.folder).tasks["colour"]["choices"] == ["红", "绿"]

    (tmp_path / "choices.txt").write_text("红\n蓝\n", encoding="utf-8")
    files = table("image,thing,colour", lambda n, image, colour, _: [image if n % 2 else "gone", "方块", colour])
    with pytest.raises(UserError, match="no usable row, but 6 × .*6 × unfit answer"):
        train("other", **files, **SHORT, task="colour", choices_file=str(tmp_path / "choices.txt"))


def test_columns_are_learned_together_and_fill_themselves(train, table, capsys):
    def line(number, image, colour, size):
        return [image, f"{colour}色的方块{'很好看' * (number % 3)}", "" if number == 5 else colour, size]

    files = table("image,描述,色,大小", line)
    fast = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "dropout": 0.0, "freeze_encoder": False}
    options = {"max_steps": 60, "per_device_train_batch_size": 12, "targets_per_row": 1, **fast}
    ran = train(**files, **options, columns=["描述", "色", "大小"], closed_columns=["色"])
    messages = capsys.readouterr().err
    assert "one of 2 values, 1 of 12 cells are empty" in messages
    assert ran.metrics["eval_色_accuracy"] == 100
    scores = evaluate(ran.folder, files, capsys, "--columns")
    assert (scores["色_accuracy"], scores["num_cells"]) == (100, 35)
    expected = [ran.metrics[f"eval_{name}_accuracy"] for name in ("描述", "色", "大小")]
    assert [scores[f"{name}_accuracy"] for name in ("描述", "色", "大小")] == pytest.approx(expected)
    assert evaluate(ran.folder, files, capsys, "--columns", "色")["num_cells"] == 11
    assert {"eval_描述_accuracy", "eval_描述_ned", "eval_大小_accuracy", "eval_mean_score"} <= ran.metrics.keys()
    processor = load_processor(ran.folder)
    colour = processor.find_task("色")
    assert (colour.prompts["zh"], colour.answer, set(colour.choices)) == (
        "这件商品的色是什么?",
        "choice",
        {"红", "绿"},
    )
    assert processor.find_task("大小").answer == "text"


def test_several_tasks_share_a_run_by_weight_and_each_is_scored(train, table, tmp_path, shop, monkeypatch, capsys):
    boxes = table("image,text,box", lambda n, image, colour, _: [image, f"{colour}色", "0,0,16,32"])
    captions = {name: shop[name] for name in shop if name.endswith("_file")}
    mix = {"caption": {"weight": 2, **captions}, "grounding": boxes}
    nothing = dict.fromkeys(captions)
    seen = []
    original = finetuning.OFATrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append(tuple(inputs["input_ids"].shape))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(finetuning.OFATrainer, "compute_loss", compute_loss)
    options = {"num_train_epochs": 1, "targets_per_row": 4, "per_device_train_batch_size": 48}
    ran = train(**nothing, **options, tasks=mix)
    assert {"eval_caption_cider_d", "eval_grounding_box_accuracy", "eval_mean_score"} <= ran.metrics.keys()
    assert len(seen) == 2 + 1, "twelve images with four captions twice, twelve boxes once"
    assert "task grounding" in capsys.readouterr().err


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def test_the_originals_files_train_as_they_are(train, tmp_path, shop):
    path = tmp_path / "refcoco_cn.tsv"
    rows = [(product(number), number) for number in range(NUM_ROWS)]
    lines = [f"{n}\t{colour}色\t0,0,16.5,20\t{encoded(image)}\n" for (colour, _, image), n in rows]
    path.write_text("".join(lines) + "broken line\n", encoding="utf-8")
    nothing = {name: None for name in shop if name.endswith("_image_file")}
    files = {"train_caption_file": str(path), "test_caption_file": str(path)}
    ran = train(**nothing, **files, **SHORT, task="grounding")
    assert "eval_box_accuracy" in ran.metrics
