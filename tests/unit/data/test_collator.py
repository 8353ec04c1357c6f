"""Promises of `ofa_hf.data.collator`: exactly the arguments of `forward`, targets cut at the right place."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ofa_hf.data import OFACollator
from ofa_hf.errors import UserError


END, IGNORED = 2, -100


@pytest.fixture
def rows(jpeg):
    texts = ["红围巾", "白", "一二三四五六七八九十"]
    return [{"id": str(i), "image": {"bytes": jpeg(i), "path": None}, "targets": [t]} for i, t in enumerate(texts)]


@pytest.fixture
def grouped_rows(jpeg):
    groups = [["红", "红围巾"], ["白杯子", "白", "一"], []]
    return [{"id": str(i), "image": jpeg(i), "targets": group} for i, group in enumerate(groups)]


def test_a_batch_holds_the_arguments_of_forward_and_nothing_else(tiny_processor, rows):
    batch = OFACollator(tiny_processor, max_target_tokens=20)(rows)
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert len(batch["input_ids"]) == 3
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [4, 2, 11]
    assert batch["labels"][1].tolist() == [*tiny_processor.encode_labels(["白"])[0].tolist(), *[IGNORED] * 9]


@pytest.mark.parametrize(("limit", "cut"), [(11, 0), (10, 1), (4, 1), (3, 2), (2, 2)])
def test_long_targets_are_cut_keep_their_end_and_are_counted(tiny_processor, rows, limit, cut):
    collator = OFACollator(tiny_processor, max_target_tokens=limit)
    labels = collator(rows)["labels"]
    expected = tiny_processor.encode_labels([row["targets"][0] for row in rows], limit)
    assert torch.equal(labels, expected)
    assert all(row[row != IGNORED][-1] == END for row in labels)
    assert collator.num_cut == cut


def test_cuts_are_counted_across_data_loader_workers(tiny_processor, rows):
    collator = OFACollator(tiny_processor, max_target_tokens=3)
    for _ in DataLoader(rows, batch_size=1, collate_fn=collator, num_workers=2):
        pass
    assert collator.num_cut == 2


def test_labels_of_groups_are_in_the_order_of_the_rows(tiny_processor, grouped_rows):
    batch = OFACollator(tiny_processor)(grouped_rows)
    assert batch["pixel_values"].shape[0] == len(batch["input_ids"]) == 3
    assert batch["labels"].shape == (3 * 3, 4)
    expected = tiny_processor.encode_labels(["红", "红围巾", "白杯子", "白", "一"])
    assert torch.equal(batch["labels"][[0, 1, 3, 4, 5]], expected)
    assert (batch["labels"][[2, 6, 7, 8]] == IGNORED).all()


def test_the_size_of_groups_can_be_fixed_and_more_targets_are_refused(tiny_processor, grouped_rows):
    assert OFACollator(tiny_processor, targets_per_row=5)(grouped_rows)["labels"].shape == (15, 4)
    with pytest.raises(ValueError, match="3 targets but targets_per_row is 2"):
        OFACollator(tiny_processor, targets_per_row=2)(grouped_rows)


def test_a_batch_of_nothing_but_fillers_has_labels_to_ignore(tiny_processor, grouped_rows):
    labels = OFACollator(tiny_processor)(grouped_rows[2:] * 2)["labels"]
    assert labels.shape[0] == 2
    assert labels.shape[1] >= 1
    assert (labels == IGNORED).all()


def test_a_broken_image_is_named(tiny_processor):
    with pytest.raises(UserError, match="The image of p7 is broken"):
        OFACollator(tiny_processor)([{"id": "p7", "image": b"nothing", "targets": ["红"]}])


def test_a_collator_can_be_sent_to_other_processes(tiny_processor, rows):
    collator = pickle.loads(pickle.dumps(OFACollator(tiny_processor, max_target_tokens=5)))
    assert collator(rows)["labels"].shape == (3, 5)


def test_no_room_for_a_target_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="at least 2"):
        OFACollator(tiny_processor, max_target_tokens=1)
