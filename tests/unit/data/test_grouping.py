"""Promises of `ofa_hf.data.grouping`: an epoch holds every target once, in a reproducible order."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader

from ofa_hf.data import GroupedTargets, GroupedTargetSampler, ImagesById, count_targets, load_muge
from ofa_hf.data.grouping import MixedTargets, MixedTargetSampler, StreamedTargets
from ofa_hf.data.shards import row_features


COUNTS = [10, 3, 1, 7, 10, 2]


@pytest.fixture(scope="module")
def rows():

    columns = {
        "id": [f"p{i}" for i in range(len(COUNTS))],
        "image": [{"bytes": bytes([i]), "path": None} for i in range(len(COUNTS))],
        "targets": [[f"{i}.{j}" for j in range(count)] for i, count in enumerate(COUNTS)],
    }
    return Dataset.from_dict(columns, features=row_features())


def targets_in(groups) -> Counter:
    return Counter((image, number) for image, numbers in groups for number in numbers)


EVERY_TARGET_ONCE = Counter((image, number) for image, count in enumerate(COUNTS) for number in range(count))


def test_counts_are_read_without_the_images(rows):
    assert count_targets(rows).tolist() == COUNTS
    assert count_targets(rows.select([4, 1])).tolist() == [10, 3]


@pytest.mark.parametrize("k", [0, 1, 3, 5, 10, 99])
def test_an_epoch_of_groups_holds_every_target_exactly_once(k):
    sampler = GroupedTargetSampler(COUNTS, k)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        groups = list(sampler)
        assert targets_in(groups) == EVERY_TARGET_ONCE
        assert len(groups) == len(sampler)
        assert all(0 < len(numbers) <= (k or 10) for _, numbers in groups)


def test_seed_and_epoch_alone_choose_the_order():
    def order(seed: int, epoch: int) -> list:
        sampler = GroupedTargetSampler(COUNTS, 3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_without_shuffling_rows_and_targets_keep_their_order():
    groups = list(GroupedTargetSampler(COUNTS, 5, shuffle=False))
    assert groups[:3] == [(0, (0, 1, 2, 3, 4)), (0, (5, 6, 7, 8, 9)), (1, (0, 1, 2))]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_without_a_target_twice(processes):
    batch_size = 2
    sampler = GroupedTargetSampler(COUNTS, 3, seed=5, fill_to=batch_size * processes)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    shares = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert targets_in(group for share in shares for batch in share for group in batch) == EVERY_TARGET_ONCE


def test_accelerates_loader_passes_the_epoch_on_and_workers_see_the_choice(rows):
    sampler = GroupedTargetSampler(COUNTS, 3)
    options = {"num_workers": 1, "persistent_workers": True, "collate_fn": list}
    loader = prepare_data_loader(
        DataLoader(GroupedTargets(rows), batch_size=2, sampler=sampler, **options), put_on_device=False
    )
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([tuple(row["targets"]) for batch in loader for row in batch])
    assert epochs[0] != epochs[1]
    for captions in epochs:
        texts = [text for group in captions for text in group]
        assert sorted(texts) == sorted(f"{i}.{j}" for i, count in enumerate(COUNTS) for j in range(count))


def test_a_plain_number_gives_all_targets(rows):
    assert GroupedTargets(rows)[1]["targets"] == ["1.0", "1.1", "1.2"]
    assert GroupedTargets(rows)[1, (2, 0)]["targets"] == ["1.2", "1.0"]


def test_a_million_targets_cost_little_memory_and_time_to_order():
    sampler = GroupedTargetSampler(np.full(100_000, 10), 5)
    first = iter(sampler)
    assert len(sampler) == 200_000
    assert next(first) != next(first)


def test_images_are_found_by_id(write_muge, tmp_path, jpeg):
    images = ImagesById(load_muge(*write_muge([4, 2]), cache_dir=tmp_path / "cache"))
    assert images["2"]["bytes"] == jpeg(2)
    assert list(images) == ["4", "2"]
    assert "7" not in images


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="targets_per_row"):
        GroupedTargetSampler(COUNTS, -1)
    assert list(GroupedTargetSampler([], 3)) == []
    assert torch.utils.data.Sampler in GroupedTargetSampler.__mro__


def test_a_stream_gives_every_target_once_a_pass_in_another_order_each_without_an_end(rows):
    stream = StreamedTargets(rows.to_iterable_dataset(), targets_per_row=3, seed=1)
    items = ((item["id"], tuple(item["targets"])) for item in stream)
    a_pass = sum(-(-count // 3) for count in COUNTS)
    first, second = (list(itertools.islice(items, a_pass)) for _ in range(2))
    assert first != second
    for groups in (first, second):
        assert max(len(captions) for _, captions in groups) <= 3
        found = sorted((image_id, caption) for image_id, captions in groups for caption in captions)
        assert found == sorted((row["id"], caption) for row in rows for caption in row["targets"])
    again = ((item["id"], tuple(item["targets"])) for item in stream)
    assert list(itertools.islice(again, 2 * a_pass)) == first + second


def test_a_stream_of_nothing_ends(rows):
    assert list(StreamedTargets(rows.to_iterable_dataset().take(0), targets_per_row=3)) == []


def test_known_images_are_not_read(rows):
    items = GroupedTargets(rows, encoded={1: torch.ones(2)})
    assert {"image", "encoded", "row_number"} & items[0].keys() == {"image", "row_number"}
    assert {"image", "encoded", "row_number"} & items[1].keys() == {"encoded", "row_number"}
    assert items[1]["targets"] == rows[1]["targets"]


def mixed(weights, block=4, seed=1, shuffle=True) -> MixedTargetSampler:
    samplers = {
        "a": GroupedTargetSampler([3, 2, 2], 1, seed=seed, shuffle=shuffle, fill_to=block),  # 7 targets: 2 blocks
        "b": GroupedTargetSampler([1] * 9, 1, seed=seed, shuffle=shuffle, fill_to=block),  # 3 blocks
    }
    return MixedTargetSampler(samplers, weights, block, seed, shuffle)


@pytest.mark.parametrize(("weights", "blocks"), [({}, (2, 3)), ({"a": 2, "b": 1 / 3}, (4, 1)), ({"a": 0.01}, (1, 3))])
def test_a_batch_is_of_one_task_and_weights_say_how_often_a_task_comes(weights, blocks):
    sampler = mixed(weights)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 4 * sum(blocks)
    tasks = [{task for task, _ in drawn[start : start + 4]} for start in range(0, len(drawn), 4)]
    assert all(len(names) == 1 for names in tasks)
    assert Counter(next(iter(names)) for names in tasks) == dict(zip("ab", blocks))


def test_every_target_comes_as_often_as_its_task_weighs():
    drawn = Counter((row, target) for task, (row, targets) in mixed({"a": 2}) if task == "a" for target in targets)
    assert set(drawn.values()) == {2}
    assert len(drawn) == 7


def test_epochs_differ_and_processes_agree():
    one, other = mixed({}), mixed({})
    first = list(one)
    assert first == list(other)
    one.set_epoch(1)
    assert list(one) != first
    one.set_epoch(0)
    assert list(one) == first
    assert [task for task, _ in mixed({}, shuffle=False)] == ["a"] * 8 + ["b"] * 12


def test_items_of_several_tasks_name_theirs():
    parts = {name: GroupedTargets(Dataset.from_dict({"id": ["1"], "targets": [["红", "绿"]]})) for name in "ab"}
    mixture = MixedTargets(parts)
    assert mixture["b", (0, (1,))] == {"id": "1", "targets": ["绿"], "tasks": ["b"]}
    assert mixture["a", (0, ())]["tasks"] == ["a"], "a row that fills a batch"
    assert len(mixture) == 2


def test_the_tasks_of_a_row_go_with_its_targets():
    rows = GroupedTargets(Dataset.from_dict({"id": ["1"], "targets": [["红", "大"]], "tasks": [["色", "型"]]}))
    assert rows[0, (1,)] == {"id": "1", "targets": ["大"], "tasks": ["型"]}
    assert rows[0, ()] == {"id": "1", "targets": [], "tasks": ["色"]}
