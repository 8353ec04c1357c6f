"""Promises of `ofa_hf.evaluation.reading`."""

from ofa_hf.evaluation.reading import edit_distance, score_reading


def test_the_most_similar_reference_counts_and_two_empty_texts_are_alike():
    scores = score_reading({"a": "出 口", "b": ""}, {"a": ["入口", "出口"], "b": [" "]})
    assert (scores["accuracy"], scores["ned"]) == (100, 100)
    assert score_reading({"a": "出口x"}, {"a": ["出口"]})["accuracy"] == 0


def test_distances_are_those_of_whole_sequences():
    assert [edit_distance(*pair) for pair in (("", "ab"), ("ab", ""), ("kitten", "sitting"), ("ab", "ba"))] == [
        2,
        2,
        3,
        2,
    ]
