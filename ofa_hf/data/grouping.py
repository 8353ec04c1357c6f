"""Views of rows for training: an item is one row with some of its targets."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset


def count_targets(dataset: Dataset) -> np.ndarray:
    """Number of targets of each row, `(rows,)`. The images are not read."""
    batches = dataset.select_columns("targets").with_format("arrow").iter(batch_size=10_000)
    counts = [pc.list_value_length(batch["targets"]).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts])


class ImagesById(Mapping):
    """The stored images of a data set by row id. Only the ids are kept in memory."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.positions = {row_id: position for position, row_id in enumerate(dataset["id"])}

    def __getitem__(self, row_id: str) -> Any:
        return self.dataset[self.positions[row_id]]["image"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


class GroupedTargets(torch.utils.data.Dataset):
    """Items are rows with the targets that the sampler chose.

    The index is a pair `(row, target numbers)` of `GroupedTargetSampler`; a plain number gives all targets. Since the
    choice is part of the index, it needs no state in data loader workers, including persistent ones.

    Args:
        encoded: known results of the encoder by row number: `number in encoded`, `encoded[number]`. Items then have a
            `row_number`, and known rows have `encoded` instead of `image`; their image is not read.
    """

    def __init__(self, dataset: Dataset, encoded: Any = None):
        self.dataset = dataset
        self.encoded = encoded
        self._texts = dataset if encoded is None else dataset.remove_columns("image")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, Sequence[int]]) -> dict[str, Any]:
        number, chosen = index if isinstance(index, tuple) else (index, None)
        number = int(number)
        is_known = self.encoded is not None and number in self.encoded
        item = dict((self._texts if is_known else self.dataset)[number])
        if chosen is not None:
            item["targets"] = [item["targets"][place] for place in chosen]
            if "tasks" in item:  # a row without targets still has a task
                item["tasks"] = [item["tasks"][place] for place in chosen] or item["tasks"][:1]
        if is_known:
            item["encoded"] = self.encoded[number]
        if self.encoded is not None:
            item["row_number"] = number
        return item


class MixedTargets(torch.utils.data.Dataset):
    """Items of several tasks, each with its own rows.

    The index is a pair `(task, index of GroupedTargets)` of `MixedTargetSampler`. Items name their task in `tasks`.
    """

    def __init__(self, parts: Mapping[str, GroupedTargets]):
        self.parts = dict(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, index: tuple[str, int | tuple[int, Sequence[int]]]) -> dict[str, Any]:
        task, own = index
        item = self.parts[task][own]
        return {**item, "tasks": [task] * max(1, len(item["targets"]))}


class StreamedTargets(torch.utils.data.IterableDataset):
    """Items like those of `GroupedTargets` from streamed rows, each with up to k of the row's targets.

    The stream is endless: it starts over after the last row, so to the Trainer a run of `max_steps` is one long epoch,
    which it can resume by counting batches. Each pass shuffles the rows within a buffer and the targets
    of each row. The groups of a row are consecutive, so with k below the number of targets they tend to be in one
    batch.

    Args:
        rows: see `stream_rows`.
        targets_per_row: k.
        buffer_size: number of rows held in memory for shuffling, with their images as stored.
    """

    def __init__(self, rows: datasets.IterableDataset, targets_per_row: int, seed: int = 0, buffer_size: int = 1000):
        self.rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
        self.targets_per_row, self.seed = targets_per_row, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self.rows.set_epoch(number)
            groups = self._one_pass(number)
            if (first := next(groups, None)) is None:
                return  # no rows at all, or none for this worker
            yield first
            yield from groups

    def _one_pass(self, number: int) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.rows):
            targets = np.random.default_rng([self.seed, number, index]).permutation(row["targets"]).tolist()
            for start in range(0, len(targets), self.targets_per_row):
                yield {**row, "targets": targets[start : start + self.targets_per_row]}


class GroupedTargetSampler(torch.utils.data.Sampler):
    """Draws rows with up to k of their targets each, so that an epoch holds every target exactly once.

    A row with n targets gives ⌈n / k⌉ groups: its targets are shuffled and cut into groups of k, the last of which may
    be shorter. The groups of all rows are then shuffled together. Everything follows from `seed` and the epoch:
    processes that agree on both agree on the order, and each may take every n-th batch, as accelerate and the Trainer
    do.

    Args:
        counts: number of targets of each row, see `count_targets`.
        targets_per_row: k; 0 means all targets of a row at once.
        shuffle: False keeps rows and targets in order.
        fill_to: groups without targets are added until the number of groups is a multiple of this. Set to the number
            of rows per step over all processes, no process repeats a target to fill its last batch.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        targets_per_row: int,
        seed: int = 0,
        shuffle: bool = True,
        fill_to: int = 1,
    ):
        if targets_per_row < 0 or fill_to < 1:
            raise ValueError(f"targets_per_row={targets_per_row} must be ≥ 0 and fill_to={fill_to} ≥ 1.")
        self.counts = np.asarray(counts)
        self.targets_per_row = targets_per_row or max(1, int(self.counts.max(initial=1)))
        self.seed = seed
        self.epoch = 0
        self.shuffle = shuffle
        self.group_ends = np.cumsum(-(-self.counts // self.targets_per_row))
        self.num_groups = int(self.group_ends[-1]) if len(self.counts) else 0
        self.num_fillers = -self.num_groups % fill_to

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; called by `OFATrainer` and by accelerate's data loaders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_groups + self.num_fillers

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        order = np.arange(self.num_groups)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for group in order:
            yield self.group(int(group))
        yield from [(0, ())] * self.num_fillers

    def group(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Row and target numbers of a group in this epoch."""
        row = int(np.searchsorted(self.group_ends, number, side="right"))
        targets = np.arange(self.counts[row])
        if self.shuffle:
            targets = np.random.default_rng([self.seed, self.epoch, row]).permutation(targets)
        first_group = int(self.group_ends[row - 1]) if row else 0
        start = (number - first_group) * self.targets_per_row
        return row, tuple(targets[start : start + self.targets_per_row].tolist())


class MixedTargetSampler(torch.utils.data.Sampler):
    """Draws batches of one task each from several tasks, whose images may have different sizes.

    An epoch goes through a task's targets as many times as its weight: twice with weight 2, through a random half of
    its batches with 0.5. All processes work on the same task at a time.

    Args:
        samplers: the sampler of each task; each fills up to a multiple of `block`.
        weights: the weight of each task.
        block: rows of one step over all processes.
        shuffle: False goes through the tasks in order.
    """

    def __init__(
        self,
        samplers: Mapping[str, GroupedTargetSampler],
        weights: Mapping[str, float],
        block: int,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.samplers, self.block, self.seed, self.shuffle = dict(samplers), block, seed, shuffle
        self.epoch = 0
        self.blocks = {
            task: max(1, round(len(sampler) // block * weights.get(task, 1.0)))
            for task, sampler in self.samplers.items()
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; called by `OFATrainer` and by accelerate's data loaders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.blocks.values()) * self.block

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        tasks = list(self.samplers)
        order = np.repeat(np.arange(len(tasks)), list(self.blocks.values()))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        groups = {task: self._passes(task) for task in tasks}
        for number in order:
            task = tasks[number]
            yield from ((task, group) for group in itertools.islice(groups[task], self.block))

    def _passes(self, task: str) -> Iterator[Any]:
        """The groups of a task, in repeated passes with different orders."""
        sampler = self.samplers[task]
        per_epoch = -(-self.blocks[task] * self.block // len(sampler))
        for number in itertools.count(self.epoch * per_epoch):
            sampler.set_epoch(number)
            yield from sampler
