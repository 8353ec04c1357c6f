"""Images become codes once: whoever ends a run, whoever shares it, whatever the disk says."""

import csv
import errno

import pytest
import torch
from PIL import Image

from ofa_hf.data.codes import ImageEncoder
from ofa_hf.data.tables import load_table
from ofa_hf.errors import UserError
from ofa_hf.tables.problems import report_of
from ofa_hf.tasks_ofa import TASKS
from ofa_hf.training.image_codes import CodeMaker
from ofa_hf.training.row_store import RowStore


TEXTS = {"0.png": ["red", "a red hat"], "1.png": ["what"], "2.png": ["hat"], "3.png": ["x"], "bad.png": ["y"]}


@pytest.fixture(scope="module")
def encoder(recorded_vqgans):
    return ImageEncoder.load(recorded_vqgans["attn2"], device="cpu")


@pytest.fixture
def rows(tmp_path):
    """Four images, one of them with two texts, one broken image and one that is missing."""
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "text"])
        lines.writerows([name, text] for name, texts in TEXTS.items() for text in texts)
        lines.writerow(["gone.png", "z"])
    for number in range(4):
        Image.effect_noise((40 + 8 * number, 40), 60).convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    return load_table(tmp_path / "pairs.csv", tmp_path, cache_dir=tmp_path / "cache")


@pytest.fixture
def make(encoder, tmp_path):
    def make(**options):
        return CodeMaker(encoder, TASKS["image_generation"], 32, str(tmp_path / "cache"), **options)

    return make


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of the encoder got."""
    counts, original = [], ImageEncoder.codes_of_pixels
    monkeypatch.setattr(
        ImageEncoder,
        "codes_of_pixels",
        lambda self, pixels, *rest: counts.append(len(pixels)) or original(self, pixels, *rest),
    )
    return counts


def test_each_text_gets_the_codes_of_its_image_and_faults_are_reported(make, rows, encoder, tmp_path, encoded):
    pairs = make()(rows)
    images = [Image.open(tmp_path / f"{number}.png") for number in (0, 0, 1, 2, 3)]
    expected = [" ".join(map(str, codes.flatten().tolist())) for codes in encoder.codes(images, 32)]
    assert [row["targets"] for row in pairs] == [[codes] for codes in expected]
    assert [row["text"] for row in pairs] == ["red", "a red hat", "what", "hat", "x"]
    assert [row["id"] for row in pairs] == ["0.png#1", "0.png#2", "1.png", "2.png", "3.png"]
    report = report_of(pairs)
    assert (report.rows, dict(report.problems)) == (5, {"broken image": 1, "targets without image": 1})
    assert report.assumed["columns"]["image"] == "image"
    del encoded[:]
    assert make()(rows)["targets"] == pairs["targets"]
    assert encoded == []


def test_a_run_that_ended_early_is_continued(make, rows, encoded, monkeypatch):
    original = RowStore.write

    def write(self, numbers, values):
        original(self, numbers, values)
        self.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "write", write)
        with pytest.raises(KeyboardInterrupt):
            make()(rows)
    assert sum(encoded) == 2
    assert len(make()(rows)) == 5
    assert sum(encoded) == 4


def test_processes_share_the_images_and_agree(make, rows, encoded, tmp_path):
    pairs = make(process=1, processes=2)(rows)
    assert encoded == [2, 2]
    assert make(process=0, processes=2)(rows)["targets"] == pairs["targets"]
    assert encoded == [2, 2]


def test_sampled_codes_are_others_and_come_again(make, rows, tmp_path):
    plain, sampled = make()(rows)["targets"], make(sample_seed=3)(rows)["targets"]
    assert plain != sampled != make(sample_seed=4)(rows)["targets"]
    for folder in (tmp_path / "cache").glob("codes-*"):
        for file in folder.iterdir():
            file.unlink()
    maker = make(sample_seed=3, process=1, processes=3)  # in another order
    with torch.random.fork_rng():
        torch.manual_seed(99)
        maker.encoder.codes_of_pixels(torch.zeros(1, 3, 32, 32), True)
    store = RowStore(tmp_path / "again", 4, (4, 4), torch.int32)
    maker._encode_missing(rows, store)
    texts = [" ".join(map(str, store[number].flatten().tolist())) for number in (0, 0, 1, 2, 3)]
    assert [[text] for text in texts] == list(sampled)


def test_a_full_disk_is_explained(make, rows, monkeypatch):
    def write(self, numbers, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RowStore, "write", write)
    with pytest.raises(UserError, match="is full. The existing codes stay valid"):
        make()(rows)


def test_an_image_that_vanished_meanwhile_is_named(make, rows, tmp_path):
    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match=r"The image of 2.png can no longer be read"):
        make()(rows)
