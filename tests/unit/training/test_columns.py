"""Promises of `ofa_hf.training.columns`: closed lists are recognized, and the usual spelling is the one that stays."""

from collections import Counter

import pytest
import tiny_shop
from datasets import Dataset

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.errors import UserError
from ofa_hf.training.columns import column_task, column_tasks, looks_closed


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> OFAProcessor:
    vocabulary = tmp_path_factory.mktemp("columns") / "vocab.txt"
    vocabulary.write_text("\n".join([*tiny_shop.WORD_PIECES, "xl"]) + "\n", encoding="utf-8")
    return OFAProcessor(OFAImageProcessor(size=16), build_tokenizer(vocabulary))


def rows_of(**columns: list[str]) -> Dataset:
    cells = [[(name, value) for name, value in zip(columns, values) if value] for values in zip(*columns.values())]
    tasks, targets = ([[pair[place] for pair in row] for row in cells] for place in (0, 1))
    return Dataset.from_dict({"tasks": tasks, "targets": targets})


def test_few_values_that_come_again_are_a_list_and_others_are_text():
    assert looks_closed(Counter(红=2, 绿=2))
    assert not looks_closed(Counter(红=9)), "nothing to choose"
    assert not looks_closed(Counter("红绿蓝黄"))
    assert not looks_closed(Counter({str(number): 5 for number in range(1000)}))


def test_spellings_that_are_one_text_to_the_model_are_one_value(processor):
    rows = rows_of(大小=["XL", "xl", "xl", "红", "红", "红"], 色=[*"红绿蓝白黄黑"])
    tasks = column_tasks(processor, ["大小", "色"], None, rows)
    assert tasks["大小"]["choices"] == ["红", "xl"]
    assert tasks["大小"]["labels"] == {"XL": "xl"}
    assert tasks["色"] == {"prompt": "这件商品的色是什么?", "answer": "text", "metric": "ocr"}


def test_values_that_only_the_rows_to_score_have_belong_to_the_list(processor):
    tasks = column_tasks(processor, ["色"], None, rows_of(色=["红", "红", "绿", "绿"]), [rows_of(色=["蓝"])])
    assert tasks["色"]["choices"] == ["红", "绿", "蓝"]


def test_a_column_is_closed_if_the_user_says_so_and_free_if_not_named(processor):
    rows = rows_of(色=["红", "红"], 字=["好", "好"])
    tasks = column_tasks(processor, ["色", "字"], ["色"], rows)
    assert (tasks["色"]["answer"], tasks["字"]["answer"]) == ("choice", "text")


def test_a_value_that_the_vocabulary_cannot_write_makes_a_column_free_or_is_said(processor):
    rows = rows_of(色=["红", "红", "…", "…"])
    assert column_tasks(processor, ["色"], None, rows)["色"]["answer"] == "text"
    with pytest.raises(UserError, match="The column 色 cannot be a closed list: These answers have no words"):
        column_tasks(processor, ["色"], ["色"], rows)


def test_names_of_columns_are_words_of_the_question_and_no_tasks():
    assert column_task("{size}", "en")["prompt"] == " what is the (size) of the product?"
    with pytest.raises(UserError, match="The column caption has the name of the task caption"):
        column_task("caption", "zh")
