"""Promises of `ofa_hf.checking.review`: every decision is saved at once, and the result is a table for finetuning."""

import pytest

from ofa_hf.checking.review import Review
from ofa_hf.data.sources import TableForm, load_source
from ofa_hf.errors import UserError
from ofa_hf.tables.table_files import open_table


@pytest.fixture
def shop(tmp_path, jpeg):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    table = tmp_path / "captions.csv"
    lines = ["图片;标题", "0.jpg;红色", "1;蓝色", "2.jpg;白色", "gone.jpg;没有", "0.jpg;红色;多余", "0.jpg;红色"]
    table.write_bytes("\n".join(lines).encode("gb18030"))
    return table, tmp_path / "photos"


def rows_of(review: Review) -> list[tuple[str, str]]:
    return [(row["image"], row["caption"]) for _, row in open_table(review.output)]


def test_what_is_accepted_or_edited_is_the_table_that_finetuning_takes(shop, tmp_path):
    review = Review(*shop)
    assert review.output == tmp_path / "captions.reviewed.csv"
    assert (len(review.items), dict(review.problems)) == (4, {"malformed line": 1})
    review.decide(0, "accepted")
    review.decide(1, "accepted", ' 深蓝色, \n"新款" ')
    review.decide(2, "rejected")
    assert rows_of(review) == [("0.jpg", "红色"), ("1", '深蓝色, "新款"')]
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    rows = load_source(review.output, shop[1], form=form, num_proc=0)
    assert rows["targets"][:] == [["红色"], ['深蓝色, "新款"']]


def test_a_review_goes_on_where_it_was_whatever_ended_it(shop):
    review = Review(*shop)
    review.decide(0, "accepted", "大红色")
    review.decide(1, "rejected")
    review.decide(1, "open")
    review.decide(2, "rejected")
    with review.decisions.open("a", encoding="utf-8") as lines:
        lines.write('{"image": "1", "orig')
    review.output.unlink()
    again = Review(*shop)
    assert [item.decision for item in again.items] == ["accepted", "open", "rejected", "open"]
    assert again.items[0].caption == "大红色"
    assert rows_of(again) == [("0.jpg", "大红色")]
    assert [again.next_open(number) for number in range(4)] == [1, 1, 3, 3]
    again.decide(1, "rejected")
    assert again.decisions.read_text(encoding="utf-8").count("\n") >= 5


def test_the_page_is_told_where_it_is_and_what_is_missing(shop):
    review = Review(*shop)
    state = review.state(99)
    assert (state["number"], state["count"], state["open"]) == (3, 4, 4)
    assert state["item"]["image"] == "gone.jpg"
    assert "no such file" in state["missing"]
    assert review.state(-1)["missing"] == ""


@pytest.mark.parametrize("wrong", [(9, "accepted", None), (0, "maybe", None), (0, "accepted", " \n")])
def test_a_decision_that_makes_no_sense_changes_nothing(shop, wrong):
    review = Review(*shop)
    with pytest.raises(ValueError):
        review.decide(*wrong)
    assert not review.decisions.exists()
    assert review.items[0].decision == "open"


def test_the_table_itself_is_never_replaced(shop, tmp_path):
    with pytest.raises(UserError, match="never replaced"):
        Review(*shop, output=shop[0])
    (tmp_path / "empty.csv").write_text("image,caption\n0.jpg, \n", encoding="utf-8")
    with pytest.raises(UserError, match="no caption to review"):
        Review(tmp_path / "empty.csv", shop[1])


def test_a_number_is_a_caption_and_rows_without_one_are_counted(tmp_path):
    table = tmp_path / "captions.jsonl"
    captions = ["12", '"红"', '""', "null", "NaN"]
    lines = [f'{{"image": "{number}.jpg", "caption": {caption}}}' for number, caption in enumerate(captions)]
    table.write_text("\n".join([*lines, '{"image": "", "caption": "蓝"}']), encoding="utf-8")
    review = Review(table, tmp_path)
    assert [item.original for item in review.items] == ["12", "红"]
    assert dict(review.problems) == {"empty target": 3, "missing id": 1}


@pytest.mark.parametrize(
    "data", ["image,caption\r\n0.jpg,改好的红色\r\n".encode("utf-8-sig"), "图片\n红".encode("gbk")]
)
def test_an_output_that_somebody_corrected_is_not_replaced(shop, data):
    review = Review(*shop)
    review.decide(0, "accepted", "大红色")
    assert rows_of(Review(*shop)) == [("0.jpg", "大红色")]
    review.output.write_bytes(data)
    with pytest.raises(UserError, match="holds what no review decided"):
        Review(*shop)
    assert review.output.read_bytes() == data
    assert any("is read as csv, gb18030" in note for note in review.notes)
