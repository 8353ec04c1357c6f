"""Every recorded item of the official data sets: the processor asks with the same tokens and starts answers alike."""

from collections import Counter

import pytest
from fixtures.official_items import SHARED, TASK_OF, needs_items, processor, recorded
from PIL import Image

from ofa_hf import OFAProcessor
from ofa_hf.tasks_ofa import (
    TASKS,
    as_in_gigaword,
    clean_phrase,
    clean_question,
    join_tokens,
    without_blanks,
    without_punctuation,
)


STARTS = {"none": "", "prev_output": "question", "src": "question and end"}
NO_LIMIT = 10**9
pytestmark = needs_items


def fields_of(item: dict) -> dict | None:
    """What a user passes as text for an item; the lengths of the recording are shorter than the usual ones."""
    if item["task"] == "vqa_gen":
        objects = item["objects"].split("&&")[: item["max_object_length"]] if item["add_object"] else None
        return {"question": clean_question(item["question"], item["max_src_length"]), "objects": objects}
    if item["task"] == "snli_ve":
        return {"hypothesis": item["hypothesis"], "caption": item["caption"] if item["add_caption"] else None}
    if item["task"] == "refcoco":
        return {"text": clean_phrase(item["text"], item["max_src_length"])}
    return {"article": item["article"]} if item["task"] == "gigaword" else None


def labels_of(item: dict, ours: OFAProcessor) -> list[int] | None:
    """Labels of an item whose answer needs no cleaning."""
    if item["task"] == "refcoco":
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, item["box"].split(","))))
        side = round(item["w_resize_ratio"] * item["w"])
        return ours.encode_bins(places(box.values(), (item["w"], item["h"]), side)) + [2]
    if item["task"] in ("vqa_gen", "snli_ve", "image_classify"):
        return [index for index in ours.encode_labels([best(item["ref_dict"])])[0].tolist() if index >= 0]
    return None


def places(box, image_size, side) -> list[int]:
    from ofa_hf.boxes_ofa import box_to_places

    return box_to_places(box, image_size, (side, side))


def best(answers: dict[str, float]) -> str:
    return max(answers, key=answers.__getitem__)


def test_every_item_is_asked_and_answered_with_the_official_tokens():
    items, compared = recorded("golden_tasks", "task_items.json")["items"], Counter()
    for item in items:
        start = STARTS.get(item.get("prompt_type"))
        ours, task = processor(item["lang"], start), TASK_OF.get(item["task"], item["task"])
        limit = {"max_length": item["max_src_length"] + 2} if item["task"] == "gigaword" else {}
        images = [Image.new("RGB", (40, 30))] if TASKS[task].needs_image else None
        asked = ours(images, [fields_of(item)], task=task, return_tensors=None, **limit)
        assert asked["input_ids"][0] == item["source"], item
        if "decoder_prompt" in item:
            assert asked.get("decoder_input_ids", [[0]])[0] == item["decoder_prompt"], item
        labels = labels_of(item, ours)
        if labels is not None and item["target"][0] != 3 and 3 not in item["target"]:
            assert labels == [index for index in item["target"] if index != 1], item
            compared["labels"] += 1
        compared[item["task"]] += 1
    assert sum(compared.values()) - compared["labels"] == len(items) == 281
    assert compared["labels"] > 140


@pytest.mark.parametrize("prompt_type", STARTS)
def test_every_item_of_glue_is_asked_with_the_official_tokens(prompt_type):
    if not (SHARED / "golden_gen").is_dir():
        pytest.skip("needs the recordings in ../shared/golden_gen, not here")
    ours, compared = processor("en", STARTS[prompt_type]), 0
    for item in recorded("golden_gen", "golden_glue.json")["items"]:
        if item["prompt_type"] == prompt_type:
            words = {
                name: " ".join(item[name].lower().split()[: item["max_src_length"]])
                for name in TASKS[item["task"]].fields
            }
            asked = ours(None, [words], task=item["task"], return_tensors=None)
            assert asked["input_ids"][0] == item["source"], item
            compared += 1
    assert compared > 5


def test_texts_are_cleaned_as_officially_before_and_after():
    texts = recorded("golden_tasks", "text_golden.json")
    for row in texts["pre_caption"]:
        assert clean_phrase(row["text"], row["max_words"] or NO_LIMIT) == row["out"], row
    for row in texts["pre_question"]:
        assert clean_question(row["text"], row["max_words"] or NO_LIMIT) == row["out"].removesuffix("?") + "?", row
    for row in texts["vqa_question_text"]:
        assert TASKS["vqa"].prompt("en", question=row["text"]) == row["out"], row
    for row in texts["eval_caption_text"]:
        assert without_punctuation(row["hyp"]) == row["out"], row
    for row in texts["fix_tokenization"]:
        assert join_tokens(row["text"]) == row["out"], row
        assert as_in_gigaword(row["text"]) == row["eval_gigaword"] == row["valid_step"], row


def test_chinese_texts_come_back_as_officially_but_for_their_blanks():
    ours = processor("cn")
    for row in recorded("golden_tasks", "text_golden.json")["cn_encode_decode"]:
        encoded = ours(text=row["text"], return_tensors=None)["input_ids"][0]
        assert encoded == [0, *row["ids"], 2], row
        assert without_blanks(ours.decode(encoded, skip_special_tokens=False)[3:-4]) == row["eval_ocr"], row
