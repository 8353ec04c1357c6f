"""Promises of `ofa_hf.data.shards`: bounded memory, whole rows."""

from datasets import Dataset

from ofa_hf.data import shards
from ofa_hf.data.shards import ArrowFile, drop_rows, row_features


def row(number: int) -> dict:
    return {"id": str(number), "image": {"bytes": bytes(100), "path": None}, "targets": ["x"]}


def test_images_are_written_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    with ArrowFile(tmp_path / "rows.arrow", row_features()) as file:
        for number in range(95):
            file.write(row(number))
            assert len(file._rows) < 10
    assert len(Dataset.from_file(str(tmp_path / "rows.arrow"))) == 95


def test_rows_can_be_dropped_from_any_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_ROWS", 4)
    with ArrowFile(tmp_path / "rows.arrow", row_features()) as file:
        for number in range(10):
            file.write(row(number))
    drop_rows(tmp_path / "rows.arrow", [0, 3, 4, 9])
    assert Dataset.from_file(str(tmp_path / "rows.arrow"))["id"][:] == ["1", "2", "5", "6", "7", "8"]
