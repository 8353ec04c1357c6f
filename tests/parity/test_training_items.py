"""Every recorded item of the official data sets: lines of its files become the official targets and allowed words."""

import base64
import importlib.util
import io
from collections import Counter
from functools import cache, partial
from types import SimpleNamespace

import pytest
from fixtures.official_items import SHARED, TASK_OF, needs_items, processor, recorded
from PIL import Image

from ofa_hf import OFAConfig, OFAForConditionalGeneration
from ofa_hf.data import OFACollator
from ofa_hf.data.answers import AnswerRule
from ofa_hf.data.official import FORMS, clean_caption, clean_read_text, clean_summary, parse_line, target_reader
from ofa_hf.data.shards import Options, make_row
from ofa_hf.tables.problems import Problem
from ofa_hf.tasks_ofa import MAX_DESCRIPTION


COLUMNS = {"vqa": ("question", "ref", "objects"), "entailment": ("hypothesis", "caption", "label")}
COLUMNS |= {"grounding": ("text", "box"), "caption": ("caption",), "ocr": ("text",), "classification": ("label",)}
COLUMNS |= {"summarization": ("article", "target_str")}
STARTS = {"none": "", "prev_output": "question", "src": "question and end", None: None}
IGNORED, PAD, UNKNOWN = -100, 1, 3
pytestmark = needs_items


@cache
def encoded_image(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row_of(item: dict, task, language: str) -> dict | Problem:
    """The row of an item's line, which is written in the order of the task's columns."""
    names = FORMS[task.name].names
    sentences = (*(name for name in names[:-1] if name in item), "label")
    texts = iter(str(item[column]) for column in COLUMNS.get(task.name, sentences))
    image = encoded_image(item.get("w", 32), item.get("h", 32))
    cells = ["7" if name == "id" else image if name == "image" else next(texts) for name in names]
    more = ["objects"] if item.get("add_object") else ["caption"] if item.get("add_caption") else []
    reader = target_reader(task, language, is_test=False)
    lengths = {"caption": clean_caption, "ocr": partial(clean_read_text, language=language)}
    lengths |= {"summarization": clean_summary}
    if task.name in lengths:  # recorded with shorter limits than the scripts'
        limit, name = item["max_tgt_length"], "limit" if task.name == "ocr" else "max_words"
        reader = lambda text: ([lengths[task.name](text, **{name: limit})], [])  # noqa: E731
    places = {name: place for place, name in enumerate(names)}
    fields = (*task.fields, *more)
    line = "\t".join(cells).encode()
    found = parse_line(line, "f", 1, places=places, fields=fields, needed=(), read_target=reader)
    if isinstance(found, Problem):
        return found
    options = Options(
        fields=fields,
        has_images="image" in names,
        has_confidences=task.name == "vqa",
        rule=AnswerRule.of(task).as_dict(),
    )
    return make_row(found, "f", None, options)


def batch_of(item: dict):
    task_name, start = TASK_OF.get(item["task"], item["task"]), STARTS[item.get("prompt_type")]
    lang = item.get("lang", "en")
    ours = processor(lang, start, round(item["w_resize_ratio"] * item["w"]) if "w" in item else 64)
    task = ours.find_task(task_name)
    row = row_of(item, task, ours.language)
    if isinstance(row, Problem):
        return row
    return OFACollator(ours, task=task_name, max_target_tokens=100)([row])


def test_every_item_is_trained_as_officially():
    items = recorded("golden_tasks", "task_items.json")["items"]
    compared, skipped = Counter(), Counter()
    for item in items:
        if any(mark in str(value) for value in item.values() for mark in ("\t", "\n")):
            skipped["no line of a table"] += 1
            continue
        if item["task"] == "caption" and item["split"] != "train":
            skipped["references kept in one text"] += 1
            continue
        if item["task"] == "ocr" and importlib.util.find_spec("zhconv") is None:
            skipped["zhconv"] += 1
            continue
        if UNKNOWN in item["target"] or len(item["target"]) == 1:
            skipped["nothing to learn"] += 1
            continue
        batch = batch_of(item)
        if isinstance(batch, Problem):
            skipped[batch.kind] += 1
            continue
        wanted = [IGNORED if token == PAD else token for token in item["target"]]
        assert batch["labels"][0].tolist()[-len([t for t in wanted if t != IGNORED]) :] == [
            token for token in wanted if token != IGNORED
        ], item
        compared[item["task"]] += 1
        if "constraint_allowed" in item and item["constraint_allowed"] is not None:
            sets = [sorted(w for w in words if w >= 0) for words in batch["word_sets"].tolist()]
            allowed = [sets[number] if number >= 0 else [] for number in batch["set_numbers"][0].tolist()]
            assert allowed == item["constraint_allowed"], item
            compared["allowed words"] += 1
        if batch["input_ids"][0].tolist() == item["source"]:
            start = batch["decoder_input_ids"][0].tolist() if "decoder_input_ids" in batch else None
            assert start is None or start == item["prev_output_tokens"], item
            compared["sources"] += 1
    expected = {"vqa_gen": 56, "refcoco": 48, "gigaword": 24, "caption": 15, "snli_ve": 14, "image_classify": 3}
    assert {name: compared[name] for name in expected} == expected, skipped
    assert compared["ocr"] == (0 if skipped["zhconv"] else 52)
    assert compared["allowed words"] == 14
    assert compared["sources"] > 120, "others were recorded with shorter questions than usual"


def test_every_image_to_draw_is_trained_as_officially():
    if not (SHARED / "golden_gen").is_dir():
        pytest.skip("needs the recordings in ../shared/golden_gen, not here")
    ours, compared, skipped = processor("en"), 0, Counter()
    task, codes = ours.find_task("image_generation"), [*range(4), *range(50265, 58457)]
    places = {"id": 0, "target": 1, "text": 2}
    prepare = OFAForConditionalGeneration.prepare_decoder_input_ids_from_labels
    for item in recorded("golden_gen", "image_gen_items.json")["items"]:
        words = item["caption"].split()[: item["max_src_length"]]
        if item.get("columns") == 2 or len(words) > MAX_DESCRIPTION:
            skipped["no codes" if "columns" in item else "longer texts than in the scripts"] += 1
            continue
        line = "\t".join([item.get("id", "7"), item["codes"], " ".join(words)]).encode()
        found = parse_line(
            line,
            "f",
            1,
            places=places,
            fields=("text",),
            needed=("text",),
            read_target=target_reader(task, "en", False),
        )
        if isinstance(found, Problem):
            skipped[found.kind] += 1
            continue
        rule = AnswerRule("image", codes=(len(item["target"]) - 1, 8192)).as_dict()
        row = make_row(found, "f", None, Options(fields=("text",), has_images=False, rule=rule))
        batch = OFACollator(ours, task="image_generation", max_target_tokens=30)([row])
        assert batch["input_ids"][0].tolist() == item["source"], item
        assert batch["labels"][0].tolist() == item["target"], item
        assert batch["code_masks"].tolist() == item.get("code_mask", [True]), item
        assert prepare(SimpleNamespace(config=OFAConfig()), batch["labels"])[0].tolist() == item["prev_output_tokens"]
        assert batch["word_sets"].tolist() == [codes]
        assert set(batch["set_numbers"][0].tolist()) == {0}
        compared += 1
    assert compared == 30, skipped
    assert skipped == {"missing field": 3, "longer texts than in the scripts": 1, "no codes": 1}


def test_every_item_about_sentences_is_trained_as_officially():
    if not (SHARED / "golden_gen").is_dir():
        pytest.skip("needs the recordings in ../shared/golden_gen, not here")
    compared = 0
    for item in recorded("golden_gen", "golden_glue.json")["items"]:
        if item["max_src_length"] != 512:
            continue
        batch = batch_of(item)
        assert not isinstance(batch, Problem), (batch, item)
        assert batch["input_ids"][0].tolist() == item["source"], item
        target = [IGNORED if token == PAD else token for token in item["target"]]
        assert batch["labels"][0].tolist() == target, item
        start = batch["decoder_input_ids"][0].tolist() if "decoder_input_ids" in batch else [0]
        assert start == item["prev_output_tokens"], item
        (number,) = [number for number in batch["set_numbers"][0].tolist() if number >= 0]
        words = [word for word in batch["word_sets"][number].tolist() if word >= 0]
        assert sorted(words) == item["constraint_allowed_last"], item
        compared += 1
    assert compared == 87
