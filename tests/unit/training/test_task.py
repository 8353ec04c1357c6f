"""A run knows its task by its row in a table: nothing else has to change to train another one."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_shop import COLOURS, SIDE
from transformers import AutoProcessor

from ofa_hf import tasks_ofa
from ofa_hf.data import OFACollator
from ofa_hf.errors import UserError
from ofa_hf.evaluation import METRICS, Scores
from ofa_hf.models import load_model
from ofa_hf.prediction.loop import predict
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.task import load_task_processor, with_task_metric


@pytest.fixture
def colour_task(monkeypatch) -> Task:
    """A task of the user's own: a prompt with a slot, a short text as its answer, a metric of its own."""

    def share_of_right_answers(predictions, references) -> Scores:
        right = [text in references[row_id] for row_id, text in predictions.items()]
        return Scores({"accuracy": 100 * sum(right) / len(right)})

    metric = replace(METRICS["caption"], name="exact", best="accuracy", titles={"accuracy": "accuracy"})
    monkeypatch.setitem(METRICS, "exact", replace(metric, score=share_of_right_answers))
    task = Task(name="colour", prompts={"zh": "{thing}是什么色?"}, metric="exact")
    monkeypatch.setitem(tasks_ofa.TASKS, "colour", task)
    return task


@pytest.fixture
def questions(tmp_path) -> dict[str, str]:
    """Arguments of a run on a table `image, thing, answer` with its folder of images."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    with (tmp_path / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "thing", "answer"])
        for number in range(12):
            name, colour = list(COLOURS.items())[number % 2]
            Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / "images" / f"{number}.png")
            lines.writerow([f"{number}.png", "方块" if number % 3 else "一个图", name])
    files = {"train_caption_file": str(tmp_path / "questions.csv"), "train_image_file": str(tmp_path / "images")}
    files |= {name.replace("train", "test"): path for name, path in files.items()}
    return {**files, "target_column": "answer", "task": "colour", "targets_per_row": 1}


def test_a_task_of_ones_own_goes_from_its_table_to_a_model_that_answers_it(train, questions, colour_task, capsys):
    saving = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    fast = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "dropout": 0.0, "freeze_encoder": False}
    ran = train(**{**questions, **saving, **fast}, max_steps=40, load_best_model_at_end=True)
    assert ran.metrics["eval_accuracy"] == 100, "two colours, forty steps"
    state = json.loads((ran.folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry.get("eval_accuracy", 0) for entry in state["log_history"])
    messages = capsys.readouterr().err
    assert "task       colour: {thing}是什么色?" in messages
    assert "accuracy 100.0000" in messages

    model, processor = load_model(ran.folder, device="cpu")
    assert (processor.default_task, sorted(processor.tasks)) == ("colour", ["caption", "colour"])
    row = {"id": "a", "image": Path(questions["train_image_file"]) / "1.png", "thing": "方块"}
    assert next(predict(model, processor, [row])).text == "绿"


def test_a_finetuned_folder_answers_its_task_without_the_row_in_the_table(train, questions, colour_task, monkeypatch):
    folder = train(**questions, max_steps=1).folder
    monkeypatch.delitem(tasks_ofa.TASKS, "colour")
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert processor.prompt_for(thing="方块") == "方块是什么色?"


def test_a_batch_holds_the_filled_prompts_of_its_rows(parse, colour_task, questions):
    args, _ = parse(**questions)
    processor = load_task_processor(args)
    rows = [{"id": str(i), "thing": thing, "price": 5, "targets": ["红"]} for i, thing in enumerate(("方块", "图"))]
    batch = OFACollator(processor)(rows)
    expected = processor(text=["方块是什么色?", "图是什么色?"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert "pixel_values" not in batch


def test_answers_of_a_file_in_any_encoding_that_cannot_be_chosen_are_left_out(
    parse, colour_task, questions, tmp_path, caplog
):
    file = tmp_path / "answers.txt"
    file.write_bytes("红\n\n绿\n红\nxyz\n".encode("gb18030"))
    args, _ = parse(**questions, choices_file=str(file))
    assert load_task_processor(args).tasks["colour"]["choices"] == ["红", "绿"]
    for left_out in ("1 empty (line 2)", "an earlier one for the model (line 4: 红)", "vocabulary (line 5: xyz)"):
        assert left_out in caplog.text
    file.write_text("xyz\n", encoding="utf-8")
    with pytest.raises(UserError, match="None of 1 answers can be chosen"):
        load_task_processor(args)


def test_rows_without_images_train_a_task_that_needs_none(train, questions, tmp_path, monkeypatch):
    task = Task(name="colour", prompts={"zh": "{thing}是什么色?"}, needs_image=False)
    monkeypatch.setitem(tasks_ofa.TASKS, "colour", task)
    ran = train(**{**questions, "train_image_file": None, "test_image_file": None}, max_steps=2)
    assert ran.num_steps == 2
    assert "eval_cider_d" in ran.metrics


@pytest.mark.parametrize("locked_embedding", [True, False])
def test_with_a_prompt_for_each_row_the_encoder_cache_keeps_only_cells(
    train, questions, colour_task, locked_embedding
):
    changes = {"freeze_word_embed": locked_embedding, "max_steps": 4, "dropout": 0.0}
    cached, plain = train("1", **questions, **changes, cache_encoder_outputs=True), train("2", **questions, **changes)
    assert [path.name[:11] for path in (cached.folder / "encoder_cache").iterdir()] == ["image-cells"]
    assert cached.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-5)


def test_muge_files_are_refused_for_a_task_with_fields(train, colour_task):
    with pytest.raises(UserError, match="The task needs the columns thing, which MUGE's files do not have"):
        train(task="colour")


def test_the_tasks_metric_picks_the_best_checkpoint_unless_the_user_does(parse, colour_task):
    saving = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2}
    trainer_args = parse(**saving)[1]
    assert with_task_metric(trainer_args, tasks_ofa.TASKS["caption"]).metric_for_best_model == "cider_d"
    assert with_task_metric(trainer_args, colour_task).metric_for_best_model == "accuracy"
    by_loss = parse(**saving, metric_for_best_model="loss")[1]
    assert with_task_metric(by_loss, colour_task).metric_for_best_model == "loss"
