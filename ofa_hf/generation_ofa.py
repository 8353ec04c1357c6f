"""Generation: encoding once per image, beam search, sampling of image codes, and scores of texts.

transformers keeps the hypotheses of a beam search in tensors and spends about a hundred operations per step on them:
for one image on a CPU, a fifth of the model's time. Here token scores are tensors too, but the few hypotheses are
lists. The results are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerateBeamEncoderDecoderOutput,
    GenerateEncoderDecoderOutput,
    GenerationConfig,
    GenerationMixin,
    GenerationMode,
    LogitsProcessor,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import ModelOutput

from .boxes_ofa import NUM_SPECIAL_TOKENS, CodesOnly
from .fast_decoding_ofa import DecodingWeights, StepCache
from .fast_ofa import WeightMemo, in_parts, some_outputs, trunk_features
from .modeling_ofa_positions import PIXELS_PER_CELL
from .versions_ofa import CACHE_NAME


IMPOSSIBLE = -1e9  # score of a missing hypothesis
SAMPLING = (GenerationMode("greedy_search"), GenerationMode("sample"))
ONE_TOKEN_PER_STEP = {GenerationMode(name) for name in ("greedy_search", "sample", "beam_search", "beam_sample")}
TOKENS_PER_CHUNK = 192  # whose logits exist at once; 23 MB


# ------------------------------------------------------------------------------------------- encoder's output


@dataclass
class OFAEncoderOutput(ModelOutput):
    """Encoder states of a batch of images and prompts, as the decoder needs them.

    Args:
        last_hidden_state: `(batch, S, d_model)`, image cells first, then text, after the final LayerNorm.
        position_embeddings: `(1, S, d_model)`, normalized; the same for every sample.
        attention_mask: `(batch, S)`, 0 where the decoder must not attend; None if it may attend everywhere.
        hidden_states, attentions: per layer, if requested; the last hidden state is the normalized one.
    """

    last_hidden_state: torch.FloatTensor | None = None
    position_embeddings: torch.FloatTensor | None = None
    attention_mask: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @classmethod
    def of(cls, value) -> "OFAEncoderOutput":
        """Accept what callers pass as `encoder_outputs`.

        Args:
            value: this class, another output or mapping with its fields, or a tuple of its tensors in their order.
        """
        if isinstance(value, (tuple, list)):
            tensors = [item for item in value if isinstance(item, Tensor)]
            value = dict(zip(("last_hidden_state", "position_embeddings", "attention_mask"), tensors, strict=False))
        get = value.get if hasattr(value, "get") else lambda name: getattr(value, name, None)
        output = cls(**{name: get(name) for name in cls.__dataclass_fields__})
        if output.position_embeddings is None:
            raise ValueError(
                "encoder_outputs has no position_embeddings, which OFA's decoder needs to score positions. "
                "Pass everything that `model.get_encoder()(...)` returned."
            )
        return output

    def rows(self, rows: list[int]) -> "OFAEncoderOutput":
        """Some rows of the batch."""
        mask = None if self.attention_mask is None else self.attention_mask[rows]
        return type(self)(self.last_hidden_state[rows], self.position_embeddings, mask)

    def repeat(self, count: int) -> "OFAEncoderOutput":
        """Every row `count` times, copies next to each other."""
        mask = self.attention_mask
        mask = None if mask is None else mask.repeat_interleave(count, dim=0)
        states = self.last_hidden_state.repeat_interleave(count, dim=0)
        return type(self)(states, self.position_embeddings, mask, self.hidden_states, self.attentions)

    @classmethod
    def join(cls, parts: "list[OFAEncoderOutput]") -> "OFAEncoderOutput":
        """Outputs of consecutive parts of a batch → one."""
        if len(parts) == 1:
            return parts[0]

        def join_levels(name: str) -> tuple[Tensor, ...] | None:
            levels = [getattr(part, name) for part in parts]
            return None if levels[0] is None else tuple(torch.cat(level) for level in zip(*levels, strict=True))

        states, mask = [part.last_hidden_state for part in parts], None
        if any(part.attention_mask is not None for part in parts):
            everything = [torch.ones(state.shape[:2], dtype=torch.long, device=state.device) for state in states]
            masks = [part.attention_mask for part in parts]
            mask = torch.cat([full if own is None else own for own, full in zip(masks, everything, strict=True)])
        return cls(
            last_hidden_state=torch.cat(states),
            position_embeddings=parts[0].position_embeddings,
            attention_mask=mask,
            hidden_states=join_levels("hidden_states"),
            attentions=join_levels("attentions"),
        )


# ------------------------------------------------------------------------------------------------- processors


class EndAtMaxLength(LogitsProcessor):
    """At the last position only `</s>` is allowed, with its true log-probability.

    A forced token without cost, like transformers' `forced_eos_token_id`, would favor texts that do not end by
    themselves.

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


class SoftmaxTemperature(LogitsProcessor):
    """Divide the logits by a temperature before they become log-probabilities: scores in, normalized scores out.

    transformers applies `temperature` only when it samples; the original applies it in beam search too.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return (scores / self.temperature).log_softmax(-1)


class AnswerTrie(LogitsProcessor):
    """Restricts a search to a list of answers; returns log-probabilities among the tokens that can follow.

    As in the original, other words are masked before the softmax.

    Args:
        choices: token ids of each answer, without start and end tokens.
        prompt_length: number of tokens that every text starts with, including the start token.

    Source: OFA `utils/trie.py`, `models/sequence_generator.py`.
    """

    before_softmax = True

    def __init__(self, choices: Sequence[Sequence[int]], eos_token_id: int, prompt_length: int = 1):
        self.next_tokens = next_tokens_of(choices, eos_token_id)
        self.eos_token_id, self.prompt_length = eos_token_id, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        masked = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            # a finished text stays finished
            allowed = sorted(self.next_tokens.get(tuple(tokens), {self.eos_token_id}))
            masked[row, allowed] = scores[row, allowed]
        return masked.log_softmax(-1)


def next_tokens_of(choices: Sequence[Sequence[int]], eos_token_id: int) -> dict[tuple[int, ...], set[int]]:
    """Prefixes of answers → the tokens that can follow; `</s>` follows a complete answer."""
    following: dict[tuple[int, ...], set[int]] = {}
    for choice in choices:
        tokens = (*choice, eos_token_id)
        for length, token in enumerate(tokens):
            following.setdefault(tokens[:length], set()).add(token)
    return following


@dataclass
class ChoiceTree:
    """The positions where the answers of a list branch, which determine their probabilities.

    Args:
        paths: as few prefixes of answers as cover all these places.
        places: for each place, its path and the number of tokens of the path before it.
        words: the tokens that can follow at any place.
        allowed: `(places, words)`, which of them can follow where.
        steps: `(3, n)`: choice, place that it passes, and word with which it continues.
    """

    paths: list[tuple[int, ...]]
    places: list[tuple[int, int]]
    words: list[int]
    allowed: Tensor
    steps: Tensor

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]], eos_token_id: int) -> "ChoiceTree":
        following = next_tokens_of(choices, eos_token_id)
        forks = [begin for begin, tokens in following.items() if len(tokens) > 1]
        inner = {fork[:length] for fork in forks for length in range(len(fork))}
        paths = [fork for fork in forks if fork not in inner]
        path_of = {path[:length]: row for row, path in enumerate(paths) for length in range(len(path) + 1)}
        words = sorted(set().union(*(following[fork] for fork in forks)))
        column, place = ({item: index for index, item in enumerate(items)} for items in (words, forks))
        allowed = torch.zeros(len(forks), len(words), dtype=torch.bool)
        for fork in forks:
            allowed[place[fork], [column[token] for token in following[fork]]] = True
        steps = [
            (index, place[tokens[:length]], column[token])
            for index, tokens in enumerate((*choice, eos_token_id) for choice in choices)
            for length, token in enumerate(tokens)
            if tokens[:length] in place
        ]
        steps = torch.tensor(steps, dtype=torch.long).view(-1, 3).T
        return cls(paths, [(path_of[fork], len(fork)) for fork in forks], words, allowed, steps)


def min_length_of(processor: LogitsProcessor) -> int | None:
    """The minimum length that a processor of transformers enforces; None for other processors."""
    if type(processor) is MinLengthLogitsProcessor:
        return processor.min_length
    if type(processor) is MinNewTokensLengthLogitsProcessor:
        return processor.prompt_length_to_skip + processor.min_new_tokens
    return None


def process_scores(scores: Tensor, texts: list[list[int]], processors: Sequence[LogitsProcessor]) -> Tensor:
    """Apply processors to `(rows, vocabulary)` scores after texts of one length; may write to the scores.

    Two processors of transformers, which rewrite all scores at every step, here write only the few that they forbid.
    """
    tokens = None
    for processor in processors:
        if (min_length := min_length_of(processor)) is not None:
            if len(texts[0]) < min_length:
                scores.index_fill_(1, processor.eos_token_id, -torch.inf)
        elif type(processor) is NoRepeatNGramLogitsProcessor:
            size = processor.ngram_size
            repeats = [(row, token) for row, text in enumerate(texts) for token in repeating_tokens(text, size)]
            if repeats:
                scores[tuple(torch.tensor(repeats, device=scores.device).T)] = -torch.inf
        else:
            tokens = torch.tensor(texts, device=scores.device) if tokens is None else tokens
            scores = processor(tokens, scores)
    return scores


def repeating_tokens(text: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of this size that the text already has."""
    begin = len(text) + 1 - size
    last = text[begin:]
    return [text[place + size - 1] for place in range(begin) if text[place : place + size - 1] == last]


# ------------------------------------------------------------------------------------------------ beam search


@dataclass
class SearchSettings:
    """The settings of a `GenerationConfig` that this beam search uses."""

    num_beams: int
    max_length: int
    eos_token_ids: list[int]
    length_penalty: float
    early_stopping: bool | str

    @classmethod
    def of(cls, config: GenerationConfig, criteria: Sequence[StoppingCriteria]) -> "SearchSettings | None":
        """The settings; None if they ask for another search."""
        return None if config.do_sample else cls.of_sampling(config, criteria)

    @classmethod
    def of_sampling(cls, config: GenerationConfig, criteria: Sequence[StoppingCriteria]) -> "SearchSettings | None":
        """The same for sampling; None if they ask for outputs or options that are not supported here."""
        if config.output_scores or config.output_logits:
            return None
        if getattr(config, "prefill_chunk_size", None) or getattr(config, "low_memory", None):
            return None
        known = {type(criterion): criterion for criterion in criteria}
        if not known.keys() <= {EosTokenCriteria, MaxLengthCriteria} or len(known) < len(criteria):
            return None
        if MaxLengthCriteria not in known or known[MaxLengthCriteria].max_length != config.max_length:
            return None
        ends = known[EosTokenCriteria].eos_token_id.tolist() if EosTokenCriteria in known else []
        return cls(config.num_beams, config.max_length, ends, config.length_penalty, config.early_stopping)


@dataclass
class Hypothesis:
    """A text: its score, its tokens including the prompt, and the row in which each generated token was found."""

    score: float
    tokens: list[int]
    rows: list[int]


class ImageSearch:
    """The beam search of one image: running texts and finished texts.

    Args:
        prompt: tokens that all texts start with.
        first_row: the first of this image's `num_beams` rows in the batch.
    """

    def __init__(self, settings: SearchSettings, prompt: list[int], first_row: int):
        self.settings, self.prompt, self.first_row = settings, prompt, first_row
        # at first all beams are the same text, so only one counts
        scores = [0.0] + [IMPOSSIBLE] * (settings.num_beams - 1)
        self.running = [Hypothesis(score, prompt, []) for score in scores]
        self.ended: list[Hypothesis] = []  # best first
        self.can_improve = True  # a running text may still beat the worst finished one
        self.can_continue = True  # some candidate of the last step is unfinished

    @property
    def is_done(self) -> bool:
        """Whether enough texts are finished, with settings that stop a search then."""
        return len(self.ended) == self.settings.num_beams and self.settings.early_stopping is True

    def step(self, scores: list[float], beams: list[int], tokens: list[int]) -> None:
        """Continue with the best candidates.

        Args:
            scores: sums of log-probabilities, best first.
            beams: the running text that each candidate continues.
            tokens: the token that it adds.
        """
        num_beams, length = self.settings.num_beams, len(self.running[0].tokens) + 1
        candidates, ended = [], []
        self.can_continue = False
        for place, (score, beam, token) in enumerate(zip(scores, beams, tokens, strict=True)):
            text = self.running[beam]
            tokens_and_rows = [*text.tokens, token], [*text.rows, self.first_row + beam]
            if length >= self.settings.max_length or token in self.settings.eos_token_ids:
                if place < num_beams:
                    ended.append(Hypothesis(self._final_score(score, length), *tokens_and_rows))
                score += IMPOSSIBLE  # continues only if too few others do
            else:
                self.can_continue = True
            candidates.append(Hypothesis(score, *tokens_and_rows))
        if self.can_improve and not self.is_done:
            self.ended = best_of([*self.ended, *(text for text in ended if text.score > IMPOSSIBLE)], num_beams)
        self.running = best_of(candidates, num_beams)
        is_patient = self.settings.early_stopping == "never" and self.settings.length_penalty > 0
        best_score = self._final_score(self.running[0].score, self.settings.max_length if is_patient else length)
        worst_ended = self.ended[-1].score if len(self.ended) == num_beams else IMPOSSIBLE
        self.can_improve = self.can_improve and best_score > worst_ended

    def results(self) -> list[Hypothesis]:
        """One text per beam, best first; empty texts if the processors allowed no more."""
        empty = Hypothesis(IMPOSSIBLE, self.prompt, [])
        return self.ended + [empty] * (self.settings.num_beams - len(self.ended))

    def _final_score(self, score: float, length: int) -> float:
        return score / (length - len(self.prompt)) ** self.settings.length_penalty


def best_of(texts: list[Hypothesis], number: int) -> list[Hypothesis]:
    return sorted(texts, key=lambda text: -text.score)[:number]


def beam_search(
    next_scores: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    prompts: Tensor,
    processors: Sequence[LogitsProcessor],
    settings: SearchSettings,
) -> list[list[Hypothesis]]:
    """Search as `GenerationMixin._beam_search` does: the same texts, `num_beams` per image.

    Args:
        next_scores: the tokens that are new to the model, `(rows, T)` → log-probabilities of the next one,
            `(rows, vocabulary)`, a tensor that may be written to.
        reorder: called with the row that each row continues, `(rows,)`.
        prompts: `(images * num_beams, P)`.

    Returns:
        per image the texts found, best first.
    """
    num_beams, device = settings.num_beams, prompts.device
    number = max(2, 1 + len(settings.eos_token_ids)) * num_beams  # enough continue even if all others end
    firsts = range(0, len(prompts), num_beams)
    images = [ImageSearch(settings, prompts[first].tolist(), first) for first in firsts]
    tokens = prompts
    while True:
        running = [text for image in images for text in image.running]
        scores = process_scores(next_scores(tokens), [text.tokens for text in running], processors)
        values, candidates = scores.topk(min(number, scores.shape[1]))
        sums = values + torch.tensor([[text.score] for text in running], device=device)
        sums, places = sums.view(len(images), -1).topk(number)
        candidates = candidates.view(len(images), -1).gather(1, places)
        best = (sums.tolist(), (places // values.shape[1]).tolist(), candidates.tolist())
        for image, *of_image in zip(images, *best, strict=True):
            image.step(*of_image)

        is_over = all(image.is_done for image in images) or not any(image.can_improve for image in images)
        if is_over or not any(image.can_continue for image in images):
            return [image.results() for image in images]
        running = [text for image in images for text in image.running]
        reorder(torch.tensor([text.rows[-1] for text in running], device=device))
        tokens = torch.tensor([text.tokens[-1:] for text in running], device=device)


# --------------------------------------------------------------------------------------------------- sampling


@dataclass
class SampledOutput(GenerateEncoderDecoderOutput):
    """Sampled codes of images, and the mean log-probability of each image's tokens, including `</s>`."""

    sequences_scores: torch.FloatTensor | None = None


def choosers(processors: Sequence[LogitsProcessor]) -> list[LogitsProcessor] | None:
    """The processors, for scores of codes only; None if one of them needs the scores of all words."""
    chosen = []
    for processor in processors:
        kind = type(processor)
        if kind in (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper):
            chosen.append(processor)
        elif kind is SuppressTokensLogitsProcessor:
            if int(torch.as_tensor(processor.suppress_tokens).max()) >= NUM_SPECIAL_TOKENS:
                return None
        elif not is_codes_only(processor) and kind is not EndAtMaxLength and min_length_of(processor) is None:
            return None  # `CodesOnly` implies the others
    return chosen


def sample_codes(
    next_scores: Callable[[Tensor], Tensor],
    prompts: Tensor,
    codes: CodesOnly,
    processors: Sequence[LogitsProcessor],
    do_sample: bool,
    streamer: Any = None,
) -> tuple[Tensor, Tensor]:
    """Generate the codes of images one by one, each row independently.

    Args:
        next_scores: the tokens that are new to the model, `(rows, T)` → scores of `codes.words`.
        prompts: `(rows, 1)`, the start token.
        processors: the result of `choosers`; they get scores of `codes.words`.
        do_sample: sample; otherwise take the best code.
        streamer: receives the tokens of each step.

    Returns:
        `(rows, 1 + codes + 1)` token ids and `(rows,)` mean log-probabilities, `</s>` included.

    Source: OFA `models/search.py`, `Sampling`, whose probabilities are renormalized among the best ones.
    """
    words = torch.tensor(codes.words, device=prompts.device)
    before = [one for one in processors if type(one) is TemperatureLogitsWarper]  # it comes before the softmax
    after = [one for one in processors if one not in before]
    tokens, steps, total = prompts, [prompts], 0.0
    for number in range(codes.length + 1):
        scores = next_scores(tokens).float()
        for processor in before:
            scores = processor(tokens, scores)
        chosen = scores = codes.of_words(scores, number)
        among = None  # places of what is left in `chosen`
        for processor in after if number < codes.length else ():
            # leaves few candidates, so that sampling is fast
            if type(processor) is TopKLogitsWarper and among is None:
                chosen, among = chosen.topk(min(processor.top_k, chosen.shape[1]))
            else:
                chosen = processor(tokens, chosen)
        places = chosen.softmax(-1).multinomial(1) if do_sample else chosen.argmax(-1, keepdim=True)
        places = places if among is None else among.gather(1, places)
        total = total + scores.gather(1, places)[:, 0]
        tokens = words[places]
        steps.append(tokens)
        if streamer is not None:
            streamer.put(tokens.cpu())
    return torch.cat(steps, dim=1), total / (codes.length + 1)


def is_codes_only(processor: LogitsProcessor) -> bool:
    """Whether a processor is a `CodesOnly`, possibly of another copy of the code: a model and a processor that are
    loaded with `trust_remote_code=True` have one each."""
    return hasattr(processor, "of_words")


def pad_lists(lists: list[list[int]], fill: int, device: torch.device) -> Tensor:
    """Lists of different lengths → `(lists, longest)`."""
    longest = max(map(len, lists))
    filled = [[*one, *[fill] * (longest - len(one))] for one in lists]
    return torch.tensor(filled, dtype=torch.int64, device=device)


# ----------------------------------------------------------------------------------------------------- scores


@torch.no_grad()
def token_log_probabilities(features: Tensor, project: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Log-probability of each token: `(N, C)` features, their projection to `(N, V)`, `(N,)` ids → `(N,)` float32."""
    chunks = zip(features.split(TOKENS_PER_CHUNK), tokens.split(TOKENS_PER_CHUNK), strict=True)
    results = []
    for part, target in chunks:  # the logits are never computed all at once
        logits = project(part).float()
        results.append(logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(results)


# ------------------------------------------------------------------------------------------------------ mixin


class OFAGenerationMixin(GenerationMixin):
    """`generate` for a model with an `encoder` and a `decoder`: encoder states exist once per image, not per beam."""

    def _init_fast_paths(self, forward: Callable, modules: tuple[type, ...]) -> None:
        """Prepare the caches of the fast paths; see `DecodingWeights` for the arguments."""
        self._folded_trunk, self._decoding_weights = WeightMemo(), DecodingWeights(forward, modules)

    # -- encoding at full speed, without gradients

    @torch.no_grad()
    def embed_image_cells(self, pixel_values: Tensor) -> Tensor:
        """`(batch, 3, height, width)` → `image_embeds`, `(batch, rows, columns, d_model)`, on the fastest path."""
        memo = None if self.training else self._folded_trunk
        trunk = self.encoder.embed_images
        return self.encoder.embed_image_cells(pixel_values, lambda pixels: trunk_features(trunk, pixels, memo))

    @torch.no_grad()
    def embed_shared_images(self, pixel_values: Tensor) -> Tensor:
        """`embed_image_cells` for images shared by several questions, in the same parts as `encode`."""
        height, width = pixel_values.shape[-2:]
        first_feature_map = 64 * (height // 2) * (width // 2) * self.dtype.itemsize
        return torch.cat(in_parts(self.embed_image_cells, {"pixel_values": pixel_values}, first_feature_map))

    @torch.no_grad()
    def encode(self, **inputs) -> OFAEncoderOutput:
        """Images and prompts → `encoder_outputs`, on the fastest path: equal to `get_encoder()(...)` up to rounding.

        Args:
            inputs: arguments of `OFAEncoder.forward`.
        """
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "patch_images" in inputs:
            inputs.setdefault("pixel_values", inputs.pop("patch_images"))
        num_tokens = inputs["inputs_embeds" if "inputs_embeds" in inputs else "input_ids"].shape[1]
        first_feature_map = 0
        if "pixel_values" in inputs:
            height, width = inputs["pixel_values"].shape[-2:]
            num_tokens += (height // PIXELS_PER_CELL) * (width // PIXELS_PER_CELL)
            first_feature_map = 64 * (height // 2) * (width // 2)
        elif "image_embeds" in inputs:
            num_tokens += inputs["image_embeds"].shape[1:3].numel()
        largest = max(num_tokens * self.config.encoder_ffn_dim, first_feature_map)
        return OFAEncoderOutput.join(in_parts(self._encode_part, inputs, largest * self.dtype.itemsize))

    def _encode_part(self, pixel_values: Tensor | None = None, **inputs) -> OFAEncoderOutput:
        if pixel_values is not None and "image_embeds" not in inputs:
            inputs["image_embeds"] = self.embed_image_cells(pixel_values)
        return self.encoder(**inputs | {"return_dict": True})

    # -- transformers' hooks

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args, **kwargs
    ):
        """`GenerationMixin.generate`, with the encoder on its fastest path.

        Raises:
            ValueError: no prompt. Without its prompt, an image would silently get another text.
        """
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if kwargs.get("encoder_outputs") is None:
            if prompt is None and kwargs.get("inputs_embeds") is None:
                raise ValueError(
                    "generate() got no prompt. Pass input_ids, as `processor(images=..., return_tensors='pt')` gives "
                    "them: they hold the prompt that the checkpoint was trained with."
                )
            settings = generation_config or self.generation_config
            names = ("attention_mask", "pixel_values", "patch_images", "patch_masks", "image_embeds", "inputs_embeds")
            encoder_inputs = {name: kwargs.get(name) for name in names}
            for name in ("output_attentions", "output_hidden_states"):
                encoder_inputs[name] = kwargs.get(name, getattr(settings, name))
            if encoder_inputs["inputs_embeds"] is None:
                encoder_inputs["input_ids"] = prompt
            kwargs["encoder_outputs"] = self.encode(**encoder_inputs)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode=None, *args, **kwargs):
        """A `StepCache` if it can be used, otherwise transformers' own cache."""
        special = (CACHE_NAME, "decoder_attention_mask", "output_attentions", "output_hidden_states")
        is_special = any(model_kwargs.get(name) is not None for name in special)
        code_masks = model_kwargs.get("code_masks")
        is_special |= code_masks is not None and not bool(code_masks.all())
        is_special |= bool(generation_config.output_attentions or generation_config.output_hidden_states)
        is_special |= bool(generation_config.cache_implementation or not generation_config.use_cache)
        num_images = len(OFAEncoderOutput.of(model_kwargs["encoder_outputs"]).last_hidden_state)
        kept = getattr(self, "_cache", None)  # a static one; transformers 4 would use it for other numbers of images
        if kept is not None and kept.cross_attention_cache.max_batch_size != num_images:
            del self._cache
        if generation_mode in ONE_TOKEN_PER_STEP and not is_special:
            is_image = code_masks is not None  # the length is known
            room = generation_config.max_length if is_image else 0
            cache = self._decoding_weights.make_cache(self, num_images, generation_mode in SAMPLING, room)
            if cache is not None:
                model_kwargs[CACHE_NAME] = cache
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)

    def _prepare_generated_length(
        self, generation_config, has_default_max_length: bool, has_default_min_length: bool, **kwargs
    ):
        """As in transformers, but without a warning if a task limits new tokens and the checkpoint all tokens."""
        has_default_max_length |= generation_config.max_new_tokens is not None
        has_default_min_length |= generation_config.min_new_tokens is not None
        return super()._prepare_generated_length(
            generation_config, has_default_max_length, has_default_min_length, **kwargs
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values=None,
        encoder_outputs: OFAEncoderOutput | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache=None,
        **kwargs,
    ) -> dict:
        past_key_values = cache if past_key_values is None else past_key_values
        if past_key_values is not None:
            input_ids = input_ids[:, int(past_key_values.get_seq_length()) :]
        return {
            "decoder_input_ids": input_ids,
            CACHE_NAME: past_key_values,
            "encoder_outputs": encoder_outputs,
            "decoder_attention_mask": decoder_attention_mask,
            "code_masks": code_masks,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=True, input_ids=None, **model_kwargs):
        if expand_size > 1:
            if input_ids is not None:
                input_ids = input_ids.repeat_interleave(expand_size, dim=0)
            for name, value in model_kwargs.items():
                if isinstance(value, Tensor) and (name.startswith("decoder_") or name == "code_masks"):
                    model_kwargs[name] = value.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def _reorder_cache(self, past_key_values, beam_idx: Tensor):
        past_key_values.self_attention_cache.reorder_cache(beam_idx)  # keys and values of images are not reordered
        return past_key_values

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        processors.sort(key=lambda processor: not getattr(processor, "before_softmax", False))
        temperature = generation_config.temperature
        if temperature in (None, 1.0):  # transformers refuses to save others with `do_sample=False`
            temperature = getattr(generation_config, "beam_temperature", None)
        if not generation_config.do_sample and temperature not in (None, 1.0):
            processors.insert(0, SoftmaxTemperature(temperature))
        if getattr(generation_config, "end_at_max_length", False):
            end = EndAtMaxLength(generation_config.max_length, self.config.eos_token_id)
            # Before top-k and top-p, which could rule out </s>, the only token allowed.
            processors.insert(0 if generation_config.do_sample else len(processors), end)
        return processors

    def _beam_search(
        self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, **model_kwargs
    ):
        """`GenerationMixin._beam_search`, with fewer operations around the model if a `StepCache` is used."""
        cache, settings = model_kwargs.get(CACHE_NAME), SearchSettings.of(generation_config, stopping_criteria)
        if settings is None or synced_gpus or not isinstance(cache, StepCache):
            arguments = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus)
            return super()._beam_search(*arguments, **model_kwargs)
        next_logits = self._next_logits(model_kwargs, next(filter(is_codes_only, logits_processor), None))

        def next_scores(tokens: Tensor) -> Tensor:
            return next_logits(tokens).float().log_softmax(-1)

        with torch.inference_mode():
            reorder = cache.self_attention_cache.reorder_cache
            images = beam_search(next_scores, reorder, input_ids, logits_processor, settings)
        texts = [text for of_image in images for text in of_image[: generation_config.num_return_sequences]]
        ends = settings.eos_token_ids
        padding = (generation_config.pad_token_id or ends[0]) if ends else -1
        sequences = pad_lists([text.tokens for text in texts], padding, input_ids.device)
        if not generation_config.return_dict_in_generate:
            return sequences
        return GenerateBeamEncoderDecoderOutput(
            sequences=sequences,
            sequences_scores=torch.tensor([text.score for text in texts], device=input_ids.device),
            beam_indices=pad_lists([text.rows for text in texts], -1, input_ids.device).int(),
            **{CACHE_NAME: cache},
        )

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        """`GenerationMixin._sample`, with fewer operations around the model for the codes of an image."""
        codes, chosen = next(filter(is_codes_only, logits_processor), None), choosers(logits_processor)
        settings, cache = (
            SearchSettings.of_sampling(generation_config, stopping_criteria),
            model_kwargs.get(CACHE_NAME),
        )
        is_other = codes is None or chosen is None or settings is None or synced_gpus or input_ids.shape[1] > 1
        if is_other or cache is None or cache.is_compileable or settings.max_length != codes.length + 2:
            arguments = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer)
            return super()._sample(*arguments, **model_kwargs)
        with torch.inference_mode():
            next_scores = self._next_logits(model_kwargs, codes, only_words=True)
            found = sample_codes(next_scores, input_ids, codes, chosen, generation_config.do_sample, streamer)
        if streamer is not None:
            streamer.end()
        if not generation_config.return_dict_in_generate:
            return found[0]
        return SampledOutput(sequences=found[0], sequences_scores=found[1], **{CACHE_NAME: cache})

    def _next_logits(
        self, model_kwargs: dict, codes: CodesOnly | None, only_words: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """A function of the tokens that are new to the model, `(rows, T)`: logits of the next one.

        Args:
            codes: set if only codes can follow; the logits of other words are then not computed.
            only_words: return `(rows, words)` for `codes.words` instead of `(rows, vocabulary)`.
        """
        encoder_outputs = OFAEncoderOutput.of(model_kwargs["encoder_outputs"])
        cache, code_masks = model_kwargs[CACHE_NAME], model_kwargs.get("code_masks")
        words = () if codes is None else codes.words
        places = torch.tensor(words, device=encoder_outputs.last_hidden_state.device, dtype=torch.long)
        inputs = {"encoder_outputs": encoder_outputs, "past_key_values": cache, "code_masks": code_masks}

        def next_logits(tokens: Tensor) -> Tensor:
            features = self.decoder(input_ids=tokens, **inputs).last_hidden_state[:, -1]
            if isinstance(cache, StepCache):
                logits = cache.logits(features, words)
            else:
                logits = some_outputs(self.decoder.output_projection, features, places)
            if only_words or codes is None:
                return logits
            everything = logits.new_full((len(logits), self.config.vocab_size), -torch.inf)
            return everything.index_copy_(1, places, logits)

        return next_logits

    # -- scores of texts

    @torch.no_grad()
    def sequence_scores(
        self,
        sequences: torch.LongTensor,
        encoder_outputs=None,
        prompt_length: int = 1,
        code_masks: torch.BoolTensor | None = None,
        words: Sequence[int] | None = None,
        **encoder_inputs,
    ) -> Tensor:
        """Mean log-probability of the tokens, including `</s>`, of texts returned by `generate`.

        Args:
            sequences: `(rows, L)`, starting with the start token; rows = batch × n, those of one image together.
            encoder_outputs: the result of `get_encoder()`; otherwise `encoder_inputs` are its arguments.
            prompt_length: number of given tokens at the start, including the start token; they are not scored.
            code_masks: `(rows,)`, True = this row's text is image codes.
            words: ids, in ascending order, among which probabilities are computed; by default all.

        Returns:
            `(rows,)` float32.
        """
        encoder_outputs = self.encode(**encoder_inputs) if encoder_outputs is None else encoder_outputs
        tokens = sequences[:, 1:]
        is_end = (tokens == self.config.eos_token_id).long()
        is_end[:, : prompt_length - 1] = 0
        is_real = (is_end.cumsum(1) - is_end == 0) & (tokens != self.config.pad_token_id)
        is_real[:, : prompt_length - 1] = False
        encoder_outputs = OFAEncoderOutput.of(encoder_outputs)
        inputs = {"encoder_outputs": encoder_outputs, "code_masks": code_masks}
        features = self.decoder(input_ids=sequences[:, :-1], **inputs).last_hidden_state
        scores = torch.zeros(tokens.shape, device=tokens.device)
        project = self.decoder.output_projection
        if words is not None:
            places = torch.tensor(list(words), device=tokens.device)
            project, tokens = (
                partial(some_outputs, project, places=places),
                torch.searchsorted(places, tokens.contiguous()),
            )
        scores[is_real] = token_log_probabilities(features[is_real], project, tokens[is_real])
        return scores.sum(1) / is_real.sum(1).clamp(min=1)

    @torch.no_grad()
    def score_choices(
        self,
        choices: Sequence[Sequence[int]],
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs=None,
        paths_per_batch: int = 64,
        **encoder_inputs,
    ) -> Tensor:
        """Log-probability of each answer of a list, given that the answer is in the list.

        This is the sum over the answer's tokens, including `</s>`, of their log-probabilities among the tokens with
        which answers of the list continue; it is not divided by length. The encoder runs once, and the decoder only
        where answers branch: once for one-token answers, however many there are.

        Args:
            choices: token ids of each answer, from `processor.encode_choices`.
            decoder_input_ids: `(batch, T)`, the start of the answers; by default the start token.
                `decoder_attention_mask` is 0 for padding, on either side.
            encoder_outputs: the result of `encode`; otherwise `encoder_inputs` are its arguments.
            paths_per_batch: number of prefixes of answers that are decoded together.

        Returns:
            `(batch, choices)` float32; the probabilities of a row sum to 1.

        Raises:
            ValueError: no choices, an empty choice, or a repeated one.

        Source: OFA `utils/eval_utils.py`, `eval_vqa_gen` with all candidates.
        """
        if not choices or not all(map(len, choices)) or len(set(map(tuple, choices))) < len(choices):
            raise ValueError(f"score_choices needs answers, each with tokens and each once; got {len(choices)}.")
        encoder_outputs = self.encode(**encoder_inputs) if encoder_outputs is None else encoder_outputs
        encoder_outputs = OFAEncoderOutput.of(encoder_outputs)
        num_rows = len(encoder_outputs.last_hidden_state)
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((num_rows, 1), self.config.decoder_start_token_id)
        mask = torch.ones_like(decoder_input_ids) if decoder_attention_mask is None else decoder_attention_mask
        starts = [ids[real.bool()].tolist() for ids, real in zip(decoder_input_ids, mask)]
        tree = ChoiceTree.of(choices, self.config.eos_token_id)
        scores = torch.zeros(num_rows, len(choices), device=encoder_outputs.last_hidden_state.device)
        if tree.places:  # a single choice is certain
            among = self._log_probabilities_at_forks(tree, starts, encoder_outputs, paths_per_batch)
            choice, place, word = tree.steps.to(scores.device)
            scores.index_add_(1, choice, among[:, place, word])
        return scores

    def answer_trie(self, choices: Sequence[Sequence[int]], prompt_length: int = 1) -> AnswerTrie:
        """A logits processor that restricts `generate` to a list of answers; see `AnswerTrie`."""
        return AnswerTrie(choices, self.config.eos_token_id, prompt_length)

    def _log_probabilities_at_forks(
        self, tree: ChoiceTree, starts: list[list[int]], encoder_outputs: OFAEncoderOutput, paths_per_batch: int
    ) -> Tensor:
        """Log-probabilities of the words that can follow at each place of a tree: `(batch, places, words)`."""
        device, features = encoder_outputs.last_hidden_state.device, []
        for first in range(0, len(tree.paths), paths_per_batch):
            paths = tree.paths[first : first + paths_per_batch]
            tokens = pad_lists(
                [[*start, *path] for start in starts for path in paths], self.config.pad_token_id, device
            )
            states = self.decoder(input_ids=tokens, encoder_outputs=encoder_outputs).last_hidden_state
            states = states.view(len(starts), len(paths), *states.shape[1:])
            here = [(path - first, length) for path, length in tree.places if first <= path < first + len(paths)]
            features += [
                torch.stack([rows[path, len(start) - 1 + length] for rows, start in zip(states, starts)])
                for path, length in here
            ]
        order = sorted(range(len(tree.places)), key=lambda place: tree.places[place][0] // paths_per_batch)
        features = torch.stack([feature for _, feature in sorted(zip(order, features), key=lambda pair: pair[0])], 1)
        words = torch.tensor(tree.words, device=device)
        logits = some_outputs(self.decoder.output_projection, features, words).float()
        return logits.masked_fill(~tree.allowed.to(device), -torch.inf).log_softmax(-1)
