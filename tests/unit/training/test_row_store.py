"""Rows in a file: what was written comes back, to everybody, and nothing else does."""

import errno
import os
import pickle

import pytest
import torch

from ofa_hf.training.row_store import RowStore, bytes_on_disk


SHAPE = (3, 5)


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "store", 10, SHAPE, torch.bfloat16)


def test_rows_come_back_in_any_order_and_the_others_are_not_there(store):
    values = torch.randn(3, *SHAPE).bfloat16()
    store.write([7, 0, 4], values)
    store.flush()
    assert [row for row in range(10) if row in store] == [0, 4, 7]
    assert store.num_written == 3
    assert all(torch.equal(store[row], value) for row, value in zip((7, 0, 4), values, strict=True))


def test_every_copy_sees_what_one_of_them_wrote(store, tmp_path):
    sibling, worker = RowStore(tmp_path / "store", 10, SHAPE, torch.bfloat16), pickle.loads(pickle.dumps(store))
    value = torch.randn(1, *SHAPE).bfloat16()
    sibling.write([2], value)
    assert 2 not in worker, "not safely on the disk yet"
    sibling.flush()
    assert torch.equal(worker[2], value[0])
    assert 2 in store


def test_a_killed_writer_loses_what_it_had_not_marked_and_nothing_else(store, tmp_path):
    store.write([1], torch.ones(1, *SHAPE))
    store.flush()
    store.write([5], torch.ones(1, *SHAPE))  # and no more
    found = RowStore(tmp_path / "store", 10, SHAPE, torch.bfloat16)
    assert [row for row in range(10) if row in found] == [1]
    assert torch.equal(found[1], torch.ones(SHAPE).bfloat16())


def test_rows_reach_the_disk_by_themselves(store, monkeypatch):
    monkeypatch.setattr("ofa_hf.training.row_store.FLUSH_BYTES", 2 * store.row_bytes)
    store.write([1], torch.ones(1, *SHAPE))
    assert store.num_written == 0
    store.write([2], torch.ones(1, *SHAPE))
    assert store.num_written == 2


def test_a_file_that_was_cut_off_counts_as_empty(store, tmp_path):
    store.write([1], torch.ones(1, *SHAPE))
    store.flush()
    os.truncate(tmp_path / "store/values.bin", 20)
    assert RowStore(tmp_path / "store", 10, SHAPE, torch.bfloat16).num_written == 0


def test_a_full_disk_is_an_error_and_leaves_the_row_out(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        store.write([1], torch.ones(1, *SHAPE))
    monkeypatch.undo()
    store.flush()
    assert 1 not in store


def test_rows_of_another_shape_are_refused(store):
    with pytest.raises(ValueError, match="shape"):
        store.write([1], torch.ones(1, 5, 3))


def test_an_empty_store_takes_up_no_room(tmp_path):
    RowStore(tmp_path / "large", 1000, (1000, 1000), torch.float32)  # 4 GB
    assert bytes_on_disk(tmp_path / "large") < 2**20
