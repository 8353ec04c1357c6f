"""Promises of `ofa_hf.data.target_index`."""

from ofa_hf.data.target_index import TargetIndex


def test_targets_keep_their_order_and_a_known_row_is_reported(tmp_path):
    index = TargetIndex(tmp_path / "index")
    assert index.add("a", ["二", "一"], "f", 1)
    assert index.add("b", ["三"], "f", 2)
    assert not index.add("a", ["四"], "f", 3)
    assert index.targets("a") == ["二", "一", "四"]
    assert index.targets("unknown") == []
    assert "b" in index
    assert "unknown" not in index
    assert len(index) == 2


def test_the_first_name_and_fields_of_a_row_stay():
    index = TargetIndex()
    index.add("a", name="a.jpg", fields={"question": "什么颜色?"})
    index.add("a", name="b.jpg", fields={"question": "多大?"})
    assert (index.name("a"), index.fields("a")) == ("a.jpg", {"question": "什么颜色?"})
    assert index.has_name(["a.jpg"])
    assert not index.has_name(["b.jpg"])


def test_another_reader_sees_what_was_committed(tmp_path):
    index = TargetIndex(tmp_path / "index")
    index.add("a", ["一"], "f", 1)
    index.commit()
    assert TargetIndex(tmp_path / "index").targets("a") == ["一"]


def test_rows_whose_image_was_never_found_are_listed_in_order():
    index = TargetIndex()
    for line, row_id in enumerate("cab", start=1):
        index.add(row_id, ["x"], "f", line)
    index.mark_found("a")
    assert list(index.not_found()) == [("c", "", "f", 1), ("b", "", "f", 3)]
