"""Views of the rows for training: one pair an item, or one image with some of its captions."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset


def caption_counts(dataset: Dataset) -> np.ndarray:
    """`(images,)`, captions of each, read without touching the images."""
    batches = dataset.select_columns("captions").with_format("arrow").iter(batch_size=10_000)
    counts = [pc.list_value_length(batch["captions"]).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts])


class ImagesById(Mapping):
    """The images of a data set, in its stored form, by their id; only the ids are kept in memory."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.positions = {image_id: position for position, image_id in enumerate(dataset["image_id"])}

    def __getitem__(self, image_id: str) -> Any:
        return self.dataset[self.positions[image_id]]["image"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


class CaptionPairs(torch.utils.data.Dataset):
    """Items `{"image_id", "image", "caption"}`, one a pair; the captions of an image lie side by side."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.ends = np.cumsum(caption_counts(dataset))  # number of pairs up to and with each image

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} pairs, no pair {index}.")
        image = int(np.searchsorted(self.ends, index, side="right"))
        row = self.dataset[image]
        first = self.ends[image] - len(row["captions"])
        return {"image_id": row["image_id"], "image": row["image"], "caption": row["captions"][index - first]}


class GroupedCaptions(torch.utils.data.Dataset):
    """Items `{"image_id", "image", "captions"}`: an image with the captions that the sampler chose.

    The index is a pair `(image, caption numbers)` of `GroupedCaptionSampler`; a plain number gives all captions. The
    choice lies in the index, so it reaches data loader workers, persistent ones too, without any state.

    Args:
        encoded: what is known of the images, by their number in the data set: `number in encoded`,
            `encoded[number]`. Items then have a `row_number`, and those that are known `encoded` in the place of
            `image`: their image is not even read.
    """

    def __init__(self, dataset: Dataset, encoded: Any = None):
        self.dataset = dataset
        self.encoded = encoded
        self._texts = dataset if encoded is None else dataset.select_columns(["image_id", "captions"])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, Sequence[int]]) -> dict[str, Any]:
        image, numbers = index if isinstance(index, tuple) else (index, None)
        image = int(image)
        is_known = self.encoded is not None and image in self.encoded
        row = (self._texts if is_known else self.dataset)[image]
        chosen = row["captions"] if numbers is None else [row["captions"][number] for number in numbers]
        known = {"encoded": self.encoded[image]} if is_known else {"image": row["image"]}
        number = {} if self.encoded is None else {"row_number": image}
        return {"image_id": row["image_id"], **known, "captions": chosen, **number}


class StreamedCaptions(torch.utils.data.IterableDataset):
    """Items as of `GroupedCaptions` from rows that stream in, each image with up to k of its captions at a time.

    The stream has no end: it starts over when the rows are through, so a run of `max_steps` is one long epoch to the
    Trainer, which finds its place again by the number of batches it has had. Images are shuffled within a buffer, a
    image's captions among themselves, anew in every pass. The groups of an image follow each other, so with k below
    the number of captions they tend to share a batch.

    Args:
        rows: `{"image_id", "image", "captions"}`, see `stream_rows`.
        captions_per_image: k.
        buffer_size: images, as they are stored, that are held in memory to be shuffled.
    """

    def __init__(
        self, rows: datasets.IterableDataset, captions_per_image: int, seed: int = 0, buffer_size: int = 1000
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
        self.captions_per_image, self.seed = captions_per_image, seed

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
            captions = np.random.default_rng([self.seed, number, index]).permutation(row["captions"]).tolist()
            for start in range(0, len(captions), self.captions_per_image):
                yield {**row, "captions": captions[start : start + self.captions_per_image]}


class GroupedCaptionSampler(torch.utils.data.Sampler):
    """Draws images with up to k of their captions each, so that an epoch holds every pair exactly once.

    An image with n captions gives ⌈n / k⌉ groups: its captions are shuffled and cut into groups of k, the last one
    may be shorter. All groups of all images are then shuffled together, so the groups of an image lie anywhere in
    the epoch. Everything follows from `seed` and the epoch: processes that agree on both agree on the order, and each
    may take every n-th batch of it, as accelerate and the Trainer do.

    Args:
        counts: captions of each image, see `caption_counts`.
        captions_per_image: k; 0 means all captions of an image at once.
        shuffle: False keeps images and captions in their order.
        fill_to: groups without captions are added until the number of groups is a multiple of this. With images a
            step over all processes, no process repeats a pair to fill its last batch.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        captions_per_image: int,
        seed: int = 0,
        shuffle: bool = True,
        fill_to: int = 1,
    ):
        if captions_per_image < 0 or fill_to < 1:
            raise ValueError(f"captions_per_image={captions_per_image} must be ≥ 0 and fill_to={fill_to} ≥ 1.")
        self.counts = np.asarray(counts)
        self.captions_per_image = captions_per_image or max(1, int(self.counts.max(initial=1)))
        self.seed = seed
        self.epoch = 0
        self.shuffle = shuffle
        self.group_ends = np.cumsum(-(-self.counts // self.captions_per_image))
        self.num_groups = int(self.group_ends[-1]) if len(self.counts) else 0
        self.num_fillers = -self.num_groups % fill_to

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; `OFATrainer` and accelerate's data loaders call this."""
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
        """Image and caption numbers of a group in this epoch."""
        image = int(np.searchsorted(self.group_ends, number, side="right"))
        captions = np.arange(self.counts[image])
        if self.shuffle:
            captions = np.random.default_rng([self.seed, self.epoch, image]).permutation(captions)
        first_group = int(self.group_ends[image - 1]) if image else 0
        start = (number - first_group) * self.captions_per_image
        return image, tuple(captions[start : start + self.captions_per_image].tolist())
