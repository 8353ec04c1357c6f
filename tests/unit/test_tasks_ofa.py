import pytest
from transformers.utils import logging

from ofa_hf.configuration_ofa import PIPELINE_CLASSES
from ofa_hf.evaluation import METRICS
from ofa_hf.tasks_ofa import TASKS, Task, checkpoint_task, find_task


def test_the_prompts_are_the_official_ones():
    assert dict(find_task("caption").prompts) == {
        "zh": "图片描述了什么内容?",
        "en": " what does the image describe?",
    }
    assert all(name == task.name for name, task in TASKS.items())


def test_every_task_has_a_metric_a_pipeline_and_fields_of_its_rows():
    for task in TASKS.values():
        assert task.metric in METRICS
        assert task.pipeline in PIPELINE_CLASSES
    assert TASKS["grounding"].fields == ("text",)
    assert TASKS["region_caption"].fields == ("box",)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("What color is the dog?", "what color is the dog?"),
        ("!!!What  is this-and/that <person>", "what is this and that person"),
        (" ".join("w" * 100), " ".join("w" * 80)),
    ],
)
def test_phrases_are_cleaned_as_the_original_does(text, cleaned):
    assert TASKS["grounding"].prompt("zh", text=text) == f'这段文字" {cleaned} "描述的是哪个区域？'


def test_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="Unknown task 'captoin'. Accepted: caption"):
        find_task("captoin")


def test_slots_are_filled_once_and_only_from_the_template():
    task = Task("match", {"zh": "{first}和{second}和{first}{}?", "en": "{first} or {second}?"})
    assert task.fields == ("first", "second")
    assert task.prompt("zh", first="{second}", second=3, other="x") == "{second}和3和{second}{}?"
    with pytest.raises(ValueError, match="no value for second"):
        task.prompt("zh", first="x")
    with pytest.raises(ValueError, match="no prompt in the language 'fr'. Accepted: zh, en"):
        task.prompt("fr", first="x", second="y")


def test_a_prompt_reaches_nothing_but_its_fields():
    assert Task("x", {"zh": "{text.__class__}{0}{text!r}"}).prompt("zh") == "{text.__class__}{0}{text!r}"


def test_a_task_is_checked_where_it_is_defined():
    with pytest.raises(ValueError, match="answer 'sound'. Accepted: text, boxes"):
        Task("x", {"zh": "?"}, answer="sound")
    with pytest.raises(ValueError, match="cleaning 'soap'. Accepted: '', 'phrase', 'question'"):
        Task("x", {"zh": "?"}, cleaning="soap")
    with pytest.raises(ValueError, match="must end with {box}"):
        Task("x", {"zh": "{box}?"})
    with pytest.raises(ValueError, match="same slots"):
        Task("x", {"zh": "{text}?", "en": "?"})


def test_a_checkpoint_changes_only_what_it_says():
    own = checkpoint_task("caption", {"prompt": "图片描述了什么?", "generation": {"num_beams": 3}}, "zh")
    assert (dict(own.prompts), dict(own.generation)) == ({"zh": "图片描述了什么?"}, {"num_beams": 3})
    assert (own.metric, own.pipeline) == (TASKS["caption"].metric, TASKS["caption"].pipeline)
    assert checkpoint_task("caption", {}, "en") == TASKS["caption"]
    with pytest.raises(ValueError, match=r"\['promt'\]. Accepted: prompt, answer"):
        checkpoint_task("caption", {"promt": "?"}, "zh")


def test_a_row_with_one_field_more_gets_the_longer_prompt():
    vqa, entailment = TASKS["vqa"], TASKS["entailment"]
    assert vqa.prompt("en", question="What?", objects="") == " what?"
    objects = ["person", "traffic light"]
    assert vqa.prompt("en", question="What?", objects=objects) == " what? object: person traffic light"
    assert vqa.prompt("zh", question="什么", objects="a&&b") == "什么? object: a b"
    assert entailment.prompt("en", hypothesis="A", caption="!B") == ' can image and text1 " b " imply text2 " a "?'
    assert "objects" not in vqa.fields
    own = checkpoint_task("vqa", {"prompt": "{question}吗?"}, "zh")
    assert own.prompt("zh", question="好", objects="a") == "好?吗?"  # the row's belongs to the row's prompt
    own = checkpoint_task("vqa", {"longer_prompts": {"hint": "{question} {hint}"}}, "zh")
    assert own.prompt("zh", question="好", hint="A") == "好? A"


def test_long_texts_are_cut_and_that_is_said(monkeypatch):
    told = []
    monkeypatch.setattr(logging.get_logger("ofa_hf.tasks_ofa"), "warning_once", told.append)
    assert len(TASKS["vqa"].prompt("en", question="what " * 2000).split()) == 80
    assert "more than 80 words was cut after the first 80" in told[0]
    assert len(TASKS["summarization"].prompt("en", article="word " * 512).split()) > 512
    assert len(told) == 1
