"""Beam search that costs little beside the model, and what a search may not choose.

transformers keeps all hypotheses in tensors of one size and spends some hundred operations a step on them, for one
image on a CPU as long as a fifth of the model takes. Here the scores of words are tensors, as there, and the few
hypotheses are lists. What is found is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
)


NEVER = -1e9  # score of a hypothesis that there is no more, or not yet
BLOCK = 32  # scores of which the largest is found first

# ---------------------------------------------------------------------------------------------- processors


class EndAtMaxLength(LogitsProcessor):
    """At the last position only `</s>` is allowed, with its true log-probability.

    A forced token that costs nothing, as transformers' `forced_eos_token_id` has it, would favour captions that never
    end by themselves.

    Source: OFA `models/sequence_generator.py`.
    """

    def __init__(self, max_length: int, eos_token_id: int):
        self.max_length, self.eos_token_id = max_length, eos_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] < self.max_length - 1:
            return scores
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.eos_token_id] = scores[:, self.eos_token_id]
        return ended


class EndFrom(LogitsProcessor):
    """No end before a text has `min_length` tokens: what transformers does, without a pass over all of the scores.

    Args:
        eos_token_ids: `(n,)`, the tokens that end a text.
    """

    def __init__(self, min_length: int, eos_token_ids: Tensor):
        self.min_length, self.eos_token_ids = min_length, eos_token_ids

    @classmethod
    def of(cls, processor: LogitsProcessor) -> LogitsProcessor:
        """One of transformers' processors in this class; others as they are."""
        if type(processor) is MinLengthLogitsProcessor:
            return cls(processor.min_length, processor.eos_token_id)
        if type(processor) is MinNewTokensLengthLogitsProcessor:
            return cls(processor.prompt_length_to_skip + processor.min_new_tokens, processor.eos_token_id)
        return processor

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] >= self.min_length:
            return scores
        return scores.index_fill(1, self.eos_token_ids, -torch.inf)


class SoftmaxTemperature(LogitsProcessor):
    """Divide the logits by a temperature before they become log-probabilities: scores in, normalised scores out.

    transformers heeds `temperature` only when it samples; the original heeds it in beam search too.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return (scores / self.temperature).log_softmax(-1)


def process(scores: Tensor, texts: list[list[int]], processors: Sequence[LogitsProcessor]) -> Tensor:
    """`(rows, vocabulary)` scores after texts of one length, which may be written to → the same, processed."""
    tokens = None
    for processor in processors:
        if type(processor) is EndFrom:
            if len(texts[0]) < processor.min_length:
                scores.index_fill_(1, processor.eos_token_ids, -torch.inf)
        elif type(processor) is NoRepeatNGramLogitsProcessor:
            size = processor.ngram_size
            repeats = [(row, token) for row, text in enumerate(texts) for token in repeating(text, size)]
            if repeats:
                scores[tuple(torch.tensor(repeats, device=scores.device).T)] = -torch.inf
        else:
            tokens = torch.tensor(texts, device=scores.device) if tokens is None else tokens
            scores = processor(tokens, scores)
    return scores


def repeating(text: list[int], size: int) -> list[int]:
    """Tokens that would end a text in `size` tokens that it has already."""
    begin = len(text) + 1 - size
    last = text[begin:]
    return [text[place + size - 1] for place in range(begin) if text[place : place + size - 1] == last]


# -------------------------------------------------------------------------------------------------- search


def best_of_rows(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """What `scores.topk(number)` gives for `(rows, n)`, several times as fast: largest and where they are.

    The largest numbers lie in the blocks with the largest maxima, so that only these have to be sorted.
    """
    num_blocks, device = scores.shape[1] // BLOCK, scores.device
    if num_blocks <= number:
        return scores.topk(number)
    blocks = scores[:, : num_blocks * BLOCK].unflatten(1, (BLOCK, num_blocks))  # a block is a column
    chosen = blocks.amax(1).topk(number, sorted=False).indices
    places = (chosen[:, None] + num_blocks * torch.arange(BLOCK, device=device)[:, None]).flatten(1)
    if num_blocks * BLOCK < scores.shape[1]:
        rest = torch.arange(num_blocks * BLOCK, scores.shape[1], device=device)
        places = torch.cat([places, rest.expand(len(scores), -1)], dim=1)
    values, found = scores.gather(1, places).topk(number)
    return values, places.gather(1, found)


@dataclass
class Rules:
    """How to search: as `GenerationConfig` has it."""

    num_beams: int
    max_length: int
    ends: list[int]  # tokens
    length_penalty: float
    early_stopping: bool | str

    @classmethod
    def of(cls, config: GenerationConfig, criteria: Sequence[StoppingCriteria]) -> "Rules | None":
        """None where a search is asked for that is not this one."""
        if config.do_sample or config.output_scores or config.output_logits:
            return None
        if getattr(config, "prefill_chunk_size", None) or getattr(config, "low_memory", None):
            return None
        known = {type(one): one for one in criteria}
        if not known.keys() <= {EosTokenCriteria, MaxLengthCriteria} or len(known) < len(criteria):
            return None
        if MaxLengthCriteria not in known or known[MaxLengthCriteria].max_length != config.max_length:
            return None
        ends = known[EosTokenCriteria].eos_token_id.tolist() if EosTokenCriteria in known else []
        return cls(config.num_beams, config.max_length, ends, config.length_penalty, config.early_stopping)


@dataclass
class Hypothesis:
    """A text: its score, its tokens with those of the prompt, and in which row each of the others was found."""

    score: float
    tokens: list[int]
    rows: list[int]


class ImageSearch:
    """The search of one image: texts that go on and texts that have ended.

    Args:
        prompt: tokens that all texts begin with.
        first_row: of the batch, the first of as many as there are beams.
    """

    def __init__(self, rules: Rules, prompt: list[int], first_row: int):
        self.rules, self.prompt, self.first_row = rules, prompt, first_row
        scores = [0.0] + [NEVER] * (rules.num_beams - 1)  # they are all the same text, so that one counts
        self.running = [Hypothesis(score, prompt, []) for score in scores]
        self.ended: list[Hypothesis] = []  # best first
        self.is_open = True  # something better may still be found
        self.goes_on = True  # some text has not ended

    @property
    def is_full(self) -> bool:
        return len(self.ended) == self.rules.num_beams

    @property
    def has_enough(self) -> bool:
        return self.is_full and self.rules.early_stopping is True

    def step(self, scores: list[float], beams: list[int], tokens: list[int]) -> None:
        """Go on with the best candidates: sums of log-probabilities, best first; texts they go on; their tokens."""
        num_beams, length = self.rules.num_beams, len(self.running[0].tokens) + 1
        going, ended = [], []
        self.goes_on = False
        for place, (score, beam, token) in enumerate(zip(scores, beams, tokens, strict=True)):
            text = self.running[beam]
            tokens_and_rows = [*text.tokens, token], [*text.rows, self.first_row + beam]
            if length >= self.rules.max_length or token in self.rules.ends:
                if place < num_beams:
                    ended.append(Hypothesis(self._final(score, length), *tokens_and_rows))
                score += NEVER  # goes on only where too few others do
            else:
                self.goes_on = True
            going.append(Hypothesis(score, *tokens_and_rows))
        if self.is_open and not self.has_enough:
            self.ended = _best([*self.ended, *(text for text in ended if text.score > NEVER)], num_beams)
        self.running = _best(going, num_beams)
        never = self.rules.early_stopping == "never" and self.rules.length_penalty > 0
        reachable = self._final(self.running[0].score, self.rules.max_length if never else length)
        self.is_open = self.is_open and reachable > (self.ended[-1].score if self.is_full else NEVER)

    def found(self) -> list[Hypothesis]:
        """As many as there are beams, best first; empty ones where the processors allowed no more."""
        return self.ended + [Hypothesis(NEVER, self.prompt, [])] * (self.rules.num_beams - len(self.ended))

    def _final(self, score: float, length: int) -> float:
        return score / (length - len(self.prompt)) ** self.rules.length_penalty


def _best(texts: list[Hypothesis], number: int) -> list[Hypothesis]:
    return sorted(texts, key=lambda text: -text.score)[:number]


def beam_search(
    next_scores: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    prompts: Tensor,
    processors: Sequence[LogitsProcessor],
    rules: Rules,
) -> list[list[Hypothesis]]:
    """Search as `GenerationMixin._beam_search` does: the same texts, of which every image has `num_beams`.

    Args:
        next_scores: the tokens that are new to the model, `(rows, T)` → log-probabilities of the next one,
            `(rows, vocabulary)`, a tensor that may be written to.
        reorder: told which row each row goes on from, `(rows,)`.
        prompts: `(images * num_beams, P)`.

    Returns:
        per image what was found, best first.
    """
    num_beams, device = rules.num_beams, prompts.device
    number = max(2, 1 + len(rules.ends)) * num_beams  # so that, whatever ends, as many as there are beams go on
    firsts = range(0, len(prompts), num_beams)
    images = [ImageSearch(rules, prompts[first].tolist(), first) for first in firsts]
    tokens = prompts
    while True:
        running = [text for image in images for text in image.running]
        scores = process(next_scores(tokens), [text.tokens for text in running], processors)
        values, found = best_of_rows(scores, min(number, scores.shape[1]))
        sums = values + torch.tensor([[text.score] for text in running], device=device)
        sums, places = sums.view(len(images), -1).topk(number)
        found = found.view(len(images), -1).gather(1, places)
        best = (sums.tolist(), (places // values.shape[1]).tolist(), found.tolist())
        for image, *candidates in zip(images, *best, strict=True):
            image.step(*candidates)

        is_over = all(image.has_enough for image in images) or not any(image.is_open for image in images)
        if is_over or not any(image.goes_on for image in images):
            return [image.found() for image in images]
        running = [text for image in images for text in image.running]
        reorder(torch.tensor([text.rows[-1] for text in running], device=device))
        tokens = torch.tensor([text.tokens[-1:] for text in running], device=device)


def padded(lists: list[list[int]], fill: int, device: torch.device) -> Tensor:
    """Lists of different lengths → `(lists, longest)`."""
    longest = max(map(len, lists))
    filled = [[*one, *[fill] * (longest - len(one))] for one in lists]
    return torch.tensor(filled, dtype=torch.int64, device=device)
