"""Beam search that costs little beside the model, and what a search may not choose.

transformers keeps all hypotheses in tensors of one size and spends some hundred operations a step on them, for one
picture on a CPU as long as a fifth of the model takes. Here the scores of words are tensors, as there, and the few
hypotheses are lists. What is found is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
                scores[tuple(torch.tensor(repeats).T)] = -torch.inf
        else:
            tokens = torch.tensor(texts) if tokens is None else tokens
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
    num_blocks = scores.shape[1] // BLOCK
    if num_blocks <= number:
        return scores.topk(number)
    blocks = scores[:, : num_blocks * BLOCK].unflatten(1, (BLOCK, num_blocks))  # a block is a column
    chosen = blocks.amax(1).topk(number, sorted=False).indices
    places = (chosen[:, None] + num_blocks * torch.arange(BLOCK)[:, None]).flatten(1)
    if num_blocks * BLOCK < scores.shape[1]:
        rest = torch.arange(num_blocks * BLOCK, scores.shape[1])
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
class Ended:
    """A hypothesis that has ended: its score, the tokens after the prompt, and in which rows they were found."""

    score: float
    tokens: list[int]
    rows: list[int]


def padded(lists: list[list[int]], fill: int) -> Tensor:
    """Lists of different lengths → `(lists, longest)`."""
    longest = max(map(len, lists))
    return torch.tensor([[*one, *[fill] * (longest - len(one))] for one in lists], dtype=torch.int64)


@dataclass
class PictureSearch:
    """What a search has found for one picture."""

    rules: Rules
    ended: list[Ended] = field(default_factory=list)  # best first
    is_open: bool = True  # something better may still be found

    @property
    def is_full(self) -> bool:
        return len(self.ended) == self.rules.num_beams

    def add(self, ended: list[Ended]) -> None:
        """Hypotheses that ended in one step. The best are kept, as many as there are beams."""
        if self.is_open and not (self.is_full and self.rules.early_stopping is True):
            self.ended += [one for one in ended if one.score > NEVER]
            self.ended.sort(key=lambda one: -one.score)
            del self.ended[self.rules.num_beams :]

    def look_ahead(self, best_score: float, length: int, longest: int) -> None:
        """Close unless the best running hypothesis, of `length` new tokens, may still get among the ended."""
        penalty = self.rules.length_penalty
        reached = longest if self.rules.early_stopping == "never" and penalty > 0 else length
        worst = self.ended[-1].score if self.is_full else NEVER
        self.is_open = self.is_open and best_score / reached**penalty > worst


def beam_search(
    next_scores: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    prompts: Tensor,
    processors: Sequence[LogitsProcessor],
    rules: Rules,
) -> list[list[Ended]]:
    """Search as `GenerationMixin._beam_search` does: the same texts, of which every picture has `num_beams`.

    Args:
        next_scores: the tokens that are new to the model, `(rows, T)` → log-probabilities of the next one,
            `(rows, vocabulary)`, a tensor that may be written to.
        reorder: told which row each row goes on from.
        prompts: `(pictures * num_beams, P)`.

    Returns:
        per picture its ended hypotheses, best first; empty ones where the processors allowed no more.
    """
    num_beams, begin = rules.num_beams, prompts.shape[1]
    number = max(2, 1 + len(rules.ends)) * num_beams  # so that, whatever ends, as many as there are beams go on
    texts, rows_of_texts = prompts.tolist(), [[] for _ in prompts]
    pictures = [PictureSearch(rules) for _ in range(len(texts) // num_beams)]
    running = torch.tensor([0.0] + [NEVER] * (num_beams - 1)).expand(len(pictures), -1)
    tokens = prompts
    while True:
        scores = process(next_scores(tokens), texts, processors)
        values, found = best_of_rows(scores, min(number, scores.shape[1]))
        totals = values.view(len(pictures), num_beams, -1) + running[:, :, None]
        totals, chosen = totals.flatten(1).topk(number)
        found = found.view(len(pictures), -1).gather(1, chosen).tolist()
        beams, totals = (chosen // values.shape[1]).tolist(), totals.tolist()

        length = len(texts[0]) + 1
        is_last, goes_on, next_running = length >= rules.max_length, False, []
        new_texts, new_rows, rows = [], [], []
        for index, picture in enumerate(pictures):
            candidates, ended = [], []
            for place, (score, beam, token) in enumerate(zip(totals[index], beams[index], found[index], strict=True)):
                row, ends = index * num_beams + beam, is_last or token in rules.ends
                if ends and place < num_beams:
                    final = score / (length - begin) ** rules.length_penalty
                    ended.append(Ended(final, [*texts[row][begin:], token], [*rows_of_texts[row], row]))
                goes_on = goes_on or not ends
                candidates.append((score + NEVER * ends, row, token))
            picture.add(ended)
            candidates.sort(key=lambda candidate: -candidate[0])
            for _, row, token in candidates[:num_beams]:
                rows.append(row)
                new_texts.append([*texts[row], token])
                new_rows.append([*rows_of_texts[row], row])
            next_running.append([score for score, _, _ in candidates[:num_beams]])
            picture.look_ahead(candidates[0][0], length - begin, rules.max_length - begin)
        all_full = rules.early_stopping is True and all(picture.is_full for picture in pictures)
        if all_full or not goes_on or not any(picture.is_open for picture in pictures):
            return [picture.ended + [Ended(NEVER, [], [])] * (num_beams - len(picture.ended)) for picture in pictures]
        texts, rows_of_texts, running = new_texts, new_rows, torch.tensor(next_running)
        reorder(torch.tensor(rows))
        tokens = torch.tensor([text[-1:] for text in texts])
