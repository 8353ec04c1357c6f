"""Promises of `ofa_hf.data.targets` and of the collator for targets that are no texts of their own."""

import pytest
import tiny_shop
import torch

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import OFACollator
from ofa_hf.data.targets import TargetWriter
from ofa_hf.errors import UserError


IGNORED = -100
CHOICES = ["红", "红色", "白"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> OFAProcessor:
    vocabulary = tmp_path_factory.mktemp("targets") / "vocab.txt"
    vocabulary.write_text("\n".join(tiny_shop.WORD_PIECES) + "\n", encoding="utf-8")
    tasks = {
        "caption": {},
        "colour": {
            "prompt": "{thing}?",
            "answer": "choice",
            "choices": ["红", "红色", "白"],
            "starts_with": "question",
        },
        "draw": {"prompt": "{text}", "answer": "image", "image": {"size": 16}},
        "kind": {"prompt": "图片?", "answer": "choice", "choices": ["一", "方块"], "labels": {"个": "一"}},
    }
    return OFAProcessor(OFAImageProcessor(size=16), build_tokenizer(vocabulary), tasks=tasks)


def test_answers_of_a_list_know_which_words_may_stand_where(processor):
    batch = OFACollator(processor, task="colour")([{"id": "a", "thing": "方块", "targets": ["红"]}])
    red, white, colour = processor.tokenizer.convert_tokens_to_ids(["红", "白", "色"])
    question = batch["input_ids"][0].tolist()
    assert batch["decoder_input_ids"].tolist() == [[*question[:-1], red]]
    assert batch["labels"].tolist() == [[*[IGNORED] * (len(question) - 2), red, 2]]
    sets = [sorted(word for word in words if word >= 0) for words in batch["word_sets"].tolist()]
    numbers = [number for number in batch["set_numbers"][0].tolist() if number >= 0]
    assert [sets[number] for number in numbers] == [sorted([red, white]), sorted([2, colour])]
    assert (batch["set_numbers"] >= 0).equal(batch["labels"] != IGNORED)


def test_an_answer_that_is_not_in_the_list_is_named(processor):
    with pytest.raises(
        UserError, match="The answer '蓝' is not in the list of the task colour, which has 3: 红, 红色, 白"
    ):
        OFACollator(processor, task="colour")([{"id": "a", "thing": "方块", "targets": ["蓝"]}])


def test_codes_of_an_image_stand_among_codes(processor):
    collate = OFACollator(processor, task="draw", max_target_tokens=2)
    rows = [
        {"id": "a", "text": "红", "targets": ["0 8191 7 7"]},
        {"id": "b", "text": "白", "targets": ["1 2 3 4", "5"]},
    ]
    batch = collate(rows)
    (first,) = processor.encode_codes([0])
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "code_masks", "word_sets", "set_numbers"}
    codes = [[0, 8191, 7, 7], [], [1, 2, 3, 4], [5]]
    expected = [[*(first + code for code in row), 2] if row else [] for row in codes]
    assert [row[row != IGNORED].tolist() for row in batch["labels"]] == expected
    assert batch["code_masks"].tolist() == [True] * 4
    assert batch["word_sets"].tolist() == [[0, 1, 2, 3, *range(first, first + 8192)]]
    assert (batch["set_numbers"] == 0).equal(batch["labels"] != IGNORED)
    assert collate.num_cut == 0
    with pytest.raises(UserError, match=r"A target of the task draw cannot be learned: it has codes from 8,192"):
        collate([{"id": "a", "text": "红", "targets": ["8192"]}])


def test_questions_about_one_image_share_it(processor, jpeg):
    row = {"id": "a", "image": jpeg(1), "tasks": ["kind", "caption", "kind"], "targets": ["个", "红色方块", "方块"]}
    other = {"id": "b", "image": jpeg(2), "tasks": ["caption"], "targets": ["白"]}
    batch = OFACollator(processor)([row, other])
    assert batch["image_rows"].tolist() == [0, 0, 1]
    assert (len(batch["pixel_values"]), len(batch["input_ids"]), len(batch["labels"])) == (2, 3, 6)
    texts = [processor.decode(label[label != IGNORED]) for label in batch["labels"]]
    assert texts == ["一", "方块", "红色方块", "", "白", ""]
    assert [bool((numbers >= 0).any()) for numbers in batch["set_numbers"]] == [True, True, False, False, False, False]


def test_a_row_that_fills_a_batch_has_its_task_and_nothing_to_learn(processor, jpeg):
    row = {"id": "a", "image": jpeg(1), "tasks": ["kind"], "targets": []}
    batch = OFACollator(processor)([row])
    assert (batch["labels"] == IGNORED).all()
    assert len(batch["labels"]) == len(batch["input_ids"]) == 1


def test_confidences_are_those_of_rows(processor):
    rows = [
        {"id": "a", "thing": "方块", "targets": ["红"], "confidence": 0.3},
        {"id": "b", "thing": "方块", "targets": ["白"]},
    ]
    assert OFACollator(processor, task="colour")(rows)["confidences"].tolist() == pytest.approx([0.3, 1])


def test_the_places_of_a_box_follow_the_size_of_its_image(processor):
    class Bins:
        tokenizer = processor.tokenizer
        encode_bins = staticmethod(list)
        model_size = staticmethod(lambda task: (512, 512))

    task = OFAProcessor(processor.image_processor, processor.tokenizer, tasks=["grounding"]).find_task("grounding")
    writer = TargetWriter(Bins(), task)
    labels = writer.write(["0,0,50,20", "0,0,50,20"], [(100, 20), (50, 40)], 30)
    assert labels.tolist() == [[0, 0, 500, 999, 2], [0, 0, 999, 500, 2]]
    with pytest.raises(UserError, match="does not fit an image of 10×10 pixels"):
        writer.write(["0,0,50,20"], [(10, 10)], 30)
    with pytest.raises(UserError, match="needs the image that the box 0,0,1,1 lies in"):
        writer.write(["0,0,1,1"], [None], 30)


def test_targets_of_texts_are_those_of_the_processor(processor):
    expected = processor.encode_labels(["红色方块", "白"])
    assert torch.equal(
        TargetWriter(processor, processor.find_task("caption")).write(["红色方块", "白"], [None] * 2, 9), expected
    )
