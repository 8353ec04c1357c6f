"""Boxes as OFA generates them: four location tokens, one of 1,000 places along a 512-pixel side each.

A box is `(xmin, ymin, xmax, ymax)` in pixels of the original image. It is scaled to the size that the model reads,
divided by 512 even if that size is another one, and rounded to the nearest place, halves to even.

Source: OFA `data/mm_data/refcoco_dataset.py`, `utils/transforms.py`, `utils/eval_utils.py` (`eval_refcoco`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.generation import LogitsProcessor


NUM_PLACES = 1000
MAX_IMAGE_SIZE = 512  # pixels that the places span
SIDES = ("xmin", "ymin", "xmax", "ymax")
NUM_SPECIAL_TOKENS = 4  # <s>, <pad>, </s>, <unk>


def _ratios(image_size: Sequence[int], model_size: Sequence[int]) -> np.ndarray:
    """Scale of the image for each side of a box: `(4,)` float32."""
    across, down = (np.float32(model) / np.float32(own) for model, own in zip(model_size, image_size, strict=True))
    return np.array([across, down, across, down], dtype=np.float32)


def parse_box(value: Any) -> tuple[float, ...]:
    """Parse a box as tables and files have it into four finite numbers; `check_box` compares it with an image.

    Args:
        value: the text `xmin,ymin,xmax,ymax`, four numbers, or a mapping with these names.

    Raises:
        ValueError: it is none of these.
    """
    sides = value
    if isinstance(value, Mapping):
        sides = [value.get(side) for side in SIDES]
    elif isinstance(value, str):
        sides = value.strip().strip("[]()").replace("，", ",").split(",")
    try:
        box = tuple(float(side) for side in sides)
    except (TypeError, ValueError):
        box = ()
    if len(box) != len(SIDES) or not np.isfinite(box).all():
        raise ValueError(f"{str(value)[:100]!r} is not a box. Accepted: xmin,ymin,xmax,ymax in pixels of the image.")
    return box


def check_box(box: Iterable[float], image_size: Sequence[int]) -> tuple[float, ...]:
    """A box as four numbers.

    Raises:
        ValueError: it is not four numbers, is empty or reversed, or lies outside the image.
    """
    try:
        box = tuple(float(side) for side in box)
        xmin, ymin, xmax, ymax = box
    except (TypeError, ValueError) as error:
        raise ValueError(f"The box {box!r} is not four numbers. Accepted: (xmin, ymin, xmax, ymax).") from error
    width, height = image_size
    if not (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height):
        raise ValueError(
            f"The box {box} does not fit an image of {width}×{height} pixels. Accepted: (xmin, ymin, xmax, ymax) in "
            f"pixels, with 0 <= xmin < xmax <= {width} and 0 <= ymin < ymax <= {height}."
        )
    return box


def box_to_places(
    box: Iterable[float], image_size: Sequence[int], model_size: Sequence[int], max_size: int = MAX_IMAGE_SIZE
) -> list[int]:
    """A box in pixels of the original image → four places.

    Args:
        image_size, model_size: `(width, height)` of the original image, and of what the model reads.
        max_size: pixels that the places span.
    """
    scaled = np.asarray(list(box), dtype=np.float32) * _ratios(image_size, model_size) / np.float32(max_size)
    places = np.rint(scaled * np.float32(NUM_PLACES - 1)).astype(int)
    return places.clip(0, NUM_PLACES - 1).tolist()


def places_to_box(
    places: Iterable[int], image_size: Sequence[int], model_size: Sequence[int], max_size: int = MAX_IMAGE_SIZE
) -> dict[str, float]:
    """Four places → a box in pixels of the original image: `{"xmin", "ymin", "xmax", "ymax"}`.

    Arguments are those of `box_to_places`.
    """
    fractions = np.asarray(list(places), dtype=np.float32) / np.float32(NUM_PLACES - 1)
    box = fractions * np.float32(max_size) / _ratios(image_size, model_size)
    return dict(zip(SIDES, box.tolist(), strict=True))


class PlacesOnly(LogitsProcessor):
    """Logits processor that makes every answer four places and `</s>`; takes and returns log-probabilities.

    As in the original, all other words are masked before the softmax, so the scores are log-probabilities among
    places and special tokens. The original still allows `<s>` and `<unk>`; here they are never generated, and `</s>`
    follows the fourth place.

    Args:
        first_place: id of `<bin_0>`; those of the other places follow.
        renormalize: if False, words are masked after the softmax, as with the original's `--zero-shot`: scores are
            log-probabilities among all words.

    Source: OFA `models/sequence_generator.py`, `constraint_range`.
    """

    before_softmax = True  # must run before the processors that mask scores

    def __init__(self, first_place: int, eos_token_id: int, renormalize: bool = True):
        self.first_place, self.eos_token_id, self.renormalize = first_place, eos_token_id, renormalize

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        end = self.first_place + NUM_PLACES
        masked = scores.clone()
        masked[:, NUM_SPECIAL_TOKENS : self.first_place] = -torch.inf
        masked[:, end:] = -torch.inf
        masked = masked.log_softmax(-1) if self.renormalize else masked
        allowed = torch.full_like(masked, -torch.inf)
        num_places = input_ids.shape[1] - 1  # without the start token
        chosen = slice(self.first_place, end) if num_places < 4 else slice(self.eos_token_id, self.eos_token_id + 1)
        allowed[:, chosen] = masked[:, chosen]
        return allowed


class CodesOnly(LogitsProcessor):
    """Logits processor that makes every answer the codes of one image and `</s>`; returns log-probabilities.

    As in the original, words other than codes and special tokens are masked before the softmax, and special tokens
    after it: the probabilities of the codes at a place sum to less than 1.

    Args:
        first_code: id of `<code_0>`; those of the other codes follow.
        length: codes of an image.

    Source: OFA `models/sequence_generator.py`, `constraint_range` and `gen_code`.
    """

    before_softmax = True  # must run before the processors that mask scores

    def __init__(self, first_code: int, num_codes: int, length: int, eos_token_id: int):
        self.first_code, self.num_codes = first_code, num_codes
        self.length, self.eos_token_id = length, eos_token_id
        # words that are not masked before the softmax
        self.words = (*range(NUM_SPECIAL_TOKENS), *range(first_code, first_code + num_codes))

    def of_words(self, scores: torch.FloatTensor, num_codes: int) -> torch.FloatTensor:
        """`(rows, words)` scores after a number of codes → log-probabilities of the same words."""
        scores = scores.log_softmax(-1)
        if num_codes < self.length:
            scores[:, :NUM_SPECIAL_TOKENS] = -torch.inf
            return scores
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.eos_token_id] = scores[:, self.eos_token_id]
        return ended

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        words = torch.tensor(self.words, device=scores.device)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, words] = self.of_words(scores[:, words], input_ids.shape[1] - 1)  # without the start token
        return masked
