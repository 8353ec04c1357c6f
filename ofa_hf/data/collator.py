"""Turn rows into batches of exactly the arguments of `forward`. In training, images are decoded only here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import LongTensor
from transformers.image_processing_utils import BatchFeature

from ofa_hf.data.targets import TargetWriter, Words, pad_labels
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.processing_ofa import IGNORED_LABEL, OFAProcessor
from ofa_hf.tasks_ofa import BOX_SLOT, Task


# Keys of a batch whose rows may have known encoder results: `(batch,)` row numbers, `(batch,)` flags of the known
# rows, and their tensors. `pixel_values` then holds only the other rows and is absent if there are none.
ROW_NUMBERS, IS_ENCODED, ENCODED = "row_numbers", "is_encoded", "encoded"
# `(questions,)`: the row whose image a question is about, where a row has several questions; the keys above and
# `pixel_values` are then about rows, all others about questions.
IMAGE_ROWS = "image_rows"
MAX_WORKERS = 256  # counters, one per data loader worker


class Question(NamedTuple):
    """A row with one task, and its targets for that task."""

    number: int  # number of the row in the batch
    row: dict[str, Any]
    task: str | None
    targets: list[str]


@dataclass
class OFACollator:
    """Rows of a task → `pixel_values`, `input_ids`, `attention_mask` of B rows, and `labels (B · k, tokens)`.

    Labels `i · k … (i + 1) · k − 1` belong to row `i`. Rows with fewer than k targets are filled up with labels of
    only −100, which the loss ignores. Targets that are too long are cut before `</s>` and counted in `num_cut`, across
    data loader workers.

    `tasks` of a row can name the task of each target. The row then counts as one row per task, and `image_rows` maps
    these to the shared image.

    Further keys, where the task needs them: `decoder_input_ids` if answers begin with the question; `word_sets` and
    `set_numbers` if they come from a list or are codes; `code_masks (B · k,)` if they are codes; `confidences
    (B · k,)` if rows have a `confidence`; see `smoothed_cross_entropy`.

    Args:
        task: fills its prompt with the fields of each row. None: the checkpoint's default task.
        max_target_tokens: maximum length of a text, including the end token.
        targets_per_row: k; 0 takes the largest number of targets in the batch.
    """

    processor: OFAProcessor
    task: str | None = None
    max_target_tokens: int = 30
    targets_per_row: int = 0
    _cut: torch.Tensor = field(default_factory=lambda: torch.zeros(MAX_WORKERS, dtype=torch.long), repr=False)
    _writers: dict[str | None, TargetWriter] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.max_target_tokens < 2:
            raise ValueError(
                f"max_target_tokens={self.max_target_tokens} leaves no room for a target; use at least 2."
            )
        self._cut.share_memory_()  # each worker counts in its own slot

    @property
    def num_cut(self) -> int:
        """Number of targets cut so far."""
        return int(self._cut.sum())

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        questions = [question for number, row in enumerate(rows) for question in self.questions(number, row)]
        images = [open_row_image(row) if "image" in row else None for row in rows]
        batch = self.encode_inputs(rows, questions, images)
        longest = max(len(question.targets) for question in questions)
        size = self.targets_per_row or max(1, longest)
        if longest > size:
            raise ValueError(f"A row has {longest} targets but targets_per_row is {size}.")
        sizes = [image and image.size for image in images]
        batch.update(self.encode_targets(questions, size, sizes, batch))
        if any(question.row.get("confidence") is not None for question in questions):
            values = [question.row.get("confidence") for question in questions]
            factors = torch.tensor([1.0 if value is None else float(value) for value in values])
            batch["confidences"] = factors.repeat_interleave(size)
        return batch

    def questions(self, number: int, row: dict[str, Any]) -> list[Question]:
        """A row as one question for each of its tasks."""
        tasks, targets = row.get("tasks"), row["targets"]
        if not tasks:
            return [Question(number, row, self.task, targets)]
        own = {task: [target for name, target in zip(tasks, targets) if name == task] for task in tasks}
        return [Question(number, row, task, answers) for task, answers in own.items()]

    def writer(self, task: str | None) -> TargetWriter:
        if task not in self._writers:
            self._writers[task] = TargetWriter(self.processor, self.processor.find_task(task))
        return self._writers[task]

    def encode_inputs(
        self, rows: list[dict[str, Any]], questions: list[Question], images: list[PIL.Image.Image | None]
    ) -> BatchFeature:
        """Prompts and images of rows; of rows with known encoder results, those results."""
        tasks = [self.writer(question.task).task for question in questions]
        present = [image for image in images if image is not None]
        if BOX_SLOT in tasks[0].fields:  # the box in the prompt depends on the size of the image
            texts = [fields_of(question.row, tasks[0]) for question in questions]
            batch = self.processor(present, texts, task=tasks[0].name, return_tensors="pt")
        else:
            prompts = [
                self.processor.prompt_for(question.task, **fields_of(question.row, task))
                for question, task in zip(questions, tasks)
            ]
            batch = self.processor(text=prompts, return_tensors="pt")
            batch.pop("code_masks", None)  # that of questions; there is one for each target
            if present:
                options = tasks[0].image
                batch.update(self.processor.image_processor(present, return_tensors="pt", **options))
        if len(questions) > len(rows):
            batch[IMAGE_ROWS] = torch.tensor([question.number for question in questions])
        if "row_number" not in rows[0]:
            return batch
        encoded = [row["encoded"] for row in rows if "encoded" in row]
        if encoded:
            batch[ENCODED] = torch.stack(encoded)
        batch[IS_ENCODED] = torch.tensor(["encoded" in row for row in rows])
        batch[ROW_NUMBERS] = torch.tensor([row["row_number"] for row in rows])
        return batch

    def encode_targets(
        self, questions: list[Question], size: int, image_sizes: Sequence[tuple[int, int] | None], batch: BatchFeature
    ) -> dict[str, torch.Tensor]:
        """Labels of `size` targets for each question, and other inputs of the loss."""
        parts, slots_of = [], []
        for task in dict.fromkeys(question.task for question in questions):
            asked = [(place, question) for place, question in enumerate(questions) if question.task == task]
            slots = [place * size + slot for place, question in asked for slot in range(len(question.targets))]
            targets = [target for _, question in asked for target in question.targets]
            sizes = [image_sizes[question.number] for _, question in asked for _ in question.targets]
            parts.append(self._write(task, targets, sizes))
            slots_of.append(slots)
        labels = torch.full((len(questions) * size, max(part.shape[1] for part in parts)), IGNORED_LABEL)
        for part, slots in zip(parts, slots_of):
            labels[slots, : part.shape[1]] = part
        writers = [self.writer(question.task) for question in questions for _ in range(size)]
        has_starts, is_bound = (any(map(test, writers)) for test in (TargetWriter.has_start, TargetWriter.is_bound))
        if not has_starts and not is_bound:
            return {"labels": labels}
        texts = [row[row != IGNORED_LABEL].tolist() for row in labels]
        starts = self._starts(writers, batch, size)
        found = {}
        if has_starts:
            texts_or_none = [text or [IGNORED_LABEL] for text in texts]
            shifted = [[IGNORED_LABEL] * (len(start) - 1) + text for start, text in zip(starts, texts_or_none)]
            decoded = [[*start, *text[:-1]] for start, text in zip(starts, texts_or_none)]
            labels = pad_labels(shifted)
            found["decoder_input_ids"] = pad_labels(decoded, self.processor.tokenizer.pad_token_id)
        if is_bound:
            found |= self._bound(writers, texts, starts, labels.shape[1])
        if any(are_codes := [writer.task.answer == "image" for writer in writers]):
            found["code_masks"] = torch.tensor(are_codes)
        return {"labels": labels, **found}

    def _write(self, task: str | None, targets: list[str], sizes: list[tuple[int, int] | None]) -> LongTensor:
        """Labels `(targets, tokens)`, each ending with `</s>`, padded with −100; long texts cut."""
        if not targets:
            return torch.full((0, 1), IGNORED_LABEL)
        labels = self.writer(task).write(targets, sizes, self.max_target_tokens + 1)
        if self.writer(task).is_bound() or self.writer(task).task.answer == "boxes":
            return labels
        too_long = (labels[:, self.max_target_tokens :] != IGNORED_LABEL).any(1)
        if too_long.any():
            labels[too_long, self.max_target_tokens - 1] = labels[too_long, self.max_target_tokens]  # keep the end
            self._count(int(too_long.sum()))
        return labels[:, : self.max_target_tokens]

    def _starts(self, writers: list[TargetWriter], batch: BatchFeature, size: int) -> list[list[int]]:
        """Decoder inputs before each target: the start token, or the part of the question that the task requires."""
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        ends = {"": 1, "question": -1, "question and end": None}  # a prompt's first token is the start token
        return [prompts[place // size][: ends[writer.task.starts_with]] for place, writer in enumerate(writers)]

    @staticmethod
    def _bound(
        writers: list[TargetWriter], texts: list[list[int]], starts: list[list[int]], width: int
    ) -> dict[str, LongTensor]:
        """The sets of words that are allowed at the positions of targets from a list."""
        numbers: dict[Words, int] = {}
        known: dict[int, int] = {}  # by identity: the set of all codes is long and occurs a thousand times
        set_numbers = torch.full((len(texts), width), -1)
        for row, writer, text, start in zip(set_numbers, writers, texts, starts):
            if writer.is_bound():
                places = writer.words_at(text)
                for words in {id(words): words for words in places}.values():
                    known[id(words)] = numbers.setdefault(words, len(numbers))
                sets = [known[id(words)] for words in places]
                row[len(start) - 1 : len(start) - 1 + len(sets)] = torch.tensor(sets, dtype=torch.long)
        return {"word_sets": pad_labels([*numbers] or [[-1]], -1), "set_numbers": set_numbers}

    def _count(self, number: int) -> None:
        worker = torch.utils.data.get_worker_info()
        self._cut[(worker.id + 1) % MAX_WORKERS if worker else 0] += number


def fields_of(row: dict[str, Any], task: Task) -> dict[str, str]:
    """The values of a row for the slots of a task's prompt and of its longer prompts."""
    return {name: row[name] for name in (*task.fields, *task.longer_prompts) if row.get(name) is not None}


def open_row_image(row: dict[str, Any]) -> PIL.Image.Image:
    """Decode a row's image.

    Raises:
        UserError: the image cannot be decoded; the message has the row's id.
    """
    try:
        return load_image(row["image"])
    except ImageError as error:
        name = row.get("id", "a row without id")
        raise UserError(
            f"The image of {name} is broken: {error} Load the data with check_images=True to skip it."
        ) from error
