"""Promises of `ofa_hf.data.grouping`: every pair exactly once an epoch, in an order that can be had again."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from ofa_hf.data import CaptionPairs, GroupedCaptions, GroupedCaptionSampler, ImagesById, caption_counts, load_muge
from ofa_hf.data.grouping import StreamedCaptions
from ofa_hf.data.shards import FEATURES


COUNTS = [10, 3, 1, 7, 10, 2]


@pytest.fixture(scope="module")
def rows():
    from datasets import Dataset

    columns = {
        "image_id": [f"p{i}" for i in range(len(COUNTS))],
        "image": [{"bytes": bytes([i]), "path": None} for i in range(len(COUNTS))],
        "captions": [[f"{i}.{j}" for j in range(count)] for i, count in enumerate(COUNTS)],
    }
    return Dataset.from_dict(columns, features=FEATURES)


def pairs_in(groups) -> Counter:
    return Counter((image, number) for image, numbers in groups for number in numbers)


EVERY_PAIR_ONCE = Counter((image, number) for image, count in enumerate(COUNTS) for number in range(count))


def test_counts_are_read_without_the_images(rows):
    assert caption_counts(rows).tolist() == COUNTS
    assert caption_counts(rows.select([4, 1])).tolist() == [10, 3]


def test_pairs_hold_every_caption_with_its_image(rows):
    pairs = CaptionPairs(rows)
    assert len(pairs) == sum(COUNTS)
    found = [(pair["image"]["bytes"][0], pair["caption"]) for pair in (pairs[i] for i in range(len(pairs)))]
    assert found == [(i, f"{i}.{j}") for i, count in enumerate(COUNTS) for j in range(count)]
    assert pairs[-1] == pairs[len(pairs) - 1]
    with pytest.raises(IndexError):
        pairs[len(pairs)]


@pytest.mark.parametrize("k", [0, 1, 3, 5, 10, 99])
def test_an_epoch_of_groups_holds_every_pair_exactly_once(k):
    sampler = GroupedCaptionSampler(COUNTS, k)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        groups = list(sampler)
        assert pairs_in(groups) == EVERY_PAIR_ONCE
        assert len(groups) == len(sampler)
        assert all(0 < len(numbers) <= (k or 10) for _, numbers in groups)


def test_seed_and_epoch_alone_choose_the_order():
    def order(seed: int, epoch: int) -> list:
        sampler = GroupedCaptionSampler(COUNTS, 3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_without_shuffling_images_and_captions_keep_their_order():
    groups = list(GroupedCaptionSampler(COUNTS, 5, shuffle=False))
    assert groups[:3] == [(0, (0, 1, 2, 3, 4)), (0, (5, 6, 7, 8, 9)), (1, (0, 1, 2))]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_without_a_pair_twice(processes):
    batch_size = 2
    sampler = GroupedCaptionSampler(COUNTS, 3, seed=5, fill_to=batch_size * processes)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    shares = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert pairs_in(group for share in shares for batch in share for group in batch) == EVERY_PAIR_ONCE


def test_accelerates_loader_passes_the_epoch_on_and_workers_see_the_choice(rows):
    sampler = GroupedCaptionSampler(COUNTS, 3)
    options = {"num_workers": 1, "persistent_workers": True, "collate_fn": list}
    loader = prepare_data_loader(
        DataLoader(GroupedCaptions(rows), batch_size=2, sampler=sampler, **options), put_on_device=False
    )
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([tuple(row["captions"]) for batch in loader for row in batch])
    assert epochs[0] != epochs[1]
    for captions in epochs:
        texts = [text for group in captions for text in group]
        assert sorted(texts) == sorted(f"{i}.{j}" for i, count in enumerate(COUNTS) for j in range(count))


def test_a_plain_number_gives_all_captions(rows):
    assert GroupedCaptions(rows)[1]["captions"] == ["1.0", "1.1", "1.2"]
    assert GroupedCaptions(rows)[1, (2, 0)]["captions"] == ["1.2", "1.0"]


def test_a_million_pairs_cost_little_memory_and_time_to_order():
    sampler = GroupedCaptionSampler(np.full(100_000, 10), 5)
    first = iter(sampler)
    assert len(sampler) == 200_000
    assert next(first) != next(first)


def test_images_are_found_by_id(write_muge, tmp_path, jpeg):
    images = ImagesById(load_muge(*write_muge([4, 2]), cache_dir=tmp_path / "cache"))
    assert images["2"]["bytes"] == jpeg(2)
    assert list(images) == ["4", "2"]
    assert "7" not in images


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="captions_per_image"):
        GroupedCaptionSampler(COUNTS, -1)
    assert list(GroupedCaptionSampler([], 3)) == []
    assert torch.utils.data.Sampler in GroupedCaptionSampler.__mro__


def test_a_stream_gives_every_caption_once_a_pass_in_another_order_each_without_an_end(rows):
    stream = StreamedCaptions(rows.to_iterable_dataset(), captions_per_image=3, seed=1)
    items = ((item["image_id"], tuple(item["captions"])) for item in stream)
    a_pass = sum(-(-count // 3) for count in COUNTS)
    first, second = (list(itertools.islice(items, a_pass)) for _ in range(2))
    assert first != second
    for groups in (first, second):
        assert max(len(captions) for _, captions in groups) <= 3
        found = sorted((image_id, caption) for image_id, captions in groups for caption in captions)
        assert found == sorted((row["image_id"], caption) for row in rows for caption in row["captions"])
    again = ((item["image_id"], tuple(item["captions"])) for item in stream)
    assert list(itertools.islice(again, 2 * a_pass)) == first + second


def test_a_stream_of_nothing_ends(rows):
    assert list(StreamedCaptions(rows.to_iterable_dataset().take(0), captions_per_image=3)) == []


def test_known_images_are_not_read(rows):
    items = GroupedCaptions(rows, encoded={1: torch.ones(2)})
    assert {"image", "encoded", "row_number"} & items[0].keys() == {"image", "row_number"}
    assert {"image", "encoded", "row_number"} & items[1].keys() == {"encoded", "row_number"}
    assert items[1]["captions"] == rows[1]["captions"]
