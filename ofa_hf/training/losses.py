"""The training loss: smoothed cross entropy without computing all logits at once.

`model.loss_function = smoothed_cross_entropy` makes `forward` call it with the decoder's features, so that
logits, which need far more memory than the rest, are never computed in full.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ofa_hf.fast_ofa import linear
from ofa_hf.modeling_ofa import IGNORED_LABEL


TOKENS_PER_CHUNK = 192  # 23 MB of logits, below what glibc reuses without asking the system for new memory
MANY_WORDS = 1024  # chunk size within a set, whose logits are not computed in full either
TOKENS_PER_CHUNK_OF_VOCABULARY = 256  # if the vocabulary is trained, whose gradient sums over the tokens of a chunk


def smoothed_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    label_smoothing: float = 0.0,
    drop_worst_ratio: float = 0.0,
    word_sets: Tensor | None = None,
    set_numbers: Tensor | None = None,
    confidences: Tensor | None = None,
    **kwargs,
) -> Tensor:
    """Smoothed cross entropy over the real tokens: their mean, or their sum divided by `num_items_in_batch`.

    Args:
        features: `(rows, T, C)`, the decoder's.
        weight: `(V, C)`, of the output projection.
        labels: `(rows, T)`, the token that each position should predict; −100 = ignored.
        label_smoothing: share ε of the target spread over the vocabulary. With `ε_i = ε / (V - 1)` a token's loss is
            `(1 - ε - ε_i) * nll + ε_i * Σ_v -log p_v`. If only some words are allowed, these are the vocabulary.
        drop_worst_ratio: share of the real tokens with the highest loss that is left out.
        word_sets: `(sets, W)`, words that are allowed at a position, −1 after the last.
        set_numbers: `(rows, T)`, the set of each position; −1 if any word is allowed.
        confidences: `(rows,)`, factors of the rows' losses.

    Source: OFA `criterions/label_smoothed_cross_entropy.py`.
    """
    is_real = labels != IGNORED_LABEL
    tokens = Tokens(
        features[is_real],
        labels[is_real],
        None if set_numbers is None else set_numbers[is_real],
        None if confidences is None else confidences[:, None].expand_as(labels)[is_real],
    )
    if drop_worst_ratio:
        losses = losses_of(tokens, weight, label_smoothing, word_sets)
        tokens = tokens.at(losses.topk(int(len(losses) * (1 - drop_worst_ratio)), largest=False).indices)
    if torch.is_grad_enabled():
        total = total_loss(tokens, weight, label_smoothing, word_sets)
    else:  # the fused loss would compute gradients that are not needed
        total = losses_of(tokens, weight, label_smoothing, word_sets).sum()
    return total / (len(tokens.labels) if num_items_in_batch is None else num_items_in_batch)


class Tokens(NamedTuple):
    """Tokens to predict: `(N, C)` features, `(N,)` ids, and if there are any the sets and the confidences of each."""

    features: Tensor
    labels: Tensor
    sets: Tensor | None = None
    confidences: Tensor | None = None

    def at(self, places: Tensor) -> "Tokens":
        return Tokens(*(None if tensor is None else tensor[places] for tensor in self))

    def free_and_bound(self) -> tuple["Tokens", "Tokens | None"]:
        """The tokens for which all words are allowed, and those for which only some are."""
        if self.sets is None:
            return self, None
        return self.at(self.sets < 0), self.at(self.sets >= 0)


def total_loss(tokens: Tokens, weight: Tensor, smoothing: float, word_sets: Tensor | None) -> Tensor:
    """Sum of the tokens' losses, for training."""
    free, bound = tokens.free_and_bound()
    if bound is not None and len(bound.labels) and not len(free.labels):
        total = 0.0
    elif free.confidences is None:
        total = FusedCrossEntropy.apply(free.features, weight, free.labels, smoothing)
    else:
        total = free.features.new_zeros((), dtype=torch.float32)
        for value in free.confidences.unique():
            part = free.at(free.confidences == value)
            total = total + value * FusedCrossEntropy.apply(part.features, weight, part.labels, smoothing)
    if bound is None:
        return total
    if word_sets.shape[1] < MANY_WORDS:
        return total + bound_losses(bound, weight, smoothing, word_sets).sum()
    return total + sum(total_loss(part, rows, smoothing, None) for _, part, rows in by_set(bound, weight, word_sets))


@torch.no_grad()
def losses_of(tokens: Tokens, weight: Tensor, smoothing: float, word_sets: Tensor | None) -> Tensor:
    """Loss of each token, `(N,)` float32."""
    free, bound = tokens.free_and_bound()
    losses = token_losses(free.features, weight, free.labels, smoothing)
    losses = losses if free.confidences is None else losses * free.confidences
    if bound is None:
        return losses
    everything = losses.new_zeros(len(tokens.labels))
    everything[tokens.sets < 0] = losses
    is_bound = tokens.sets >= 0
    if word_sets.shape[1] < MANY_WORDS:
        everything[is_bound] = bound_losses(bound, weight, smoothing, word_sets)
        return everything
    places = is_bound.nonzero()[:, 0]
    for here, part, rows in by_set(bound, weight, word_sets):
        everything[places[here]] = losses_of(part, rows, smoothing, None)
    return everything


def by_set(tokens: Tokens, weight: Tensor, word_sets: Tensor) -> Iterator[tuple[Tensor, Tokens, Tensor]]:
    """For each set: mask of its tokens, the tokens with labels renumbered within the set, its rows of `weight`."""
    for number in tokens.sets.unique():
        here, words = tokens.sets == number, word_sets[number]
        words = words[words >= 0].sort().values
        part = tokens.at(here)
        labels = torch.searchsorted(words, part.labels)
        yield here, Tokens(part.features, labels, None, part.confidences), weight.index_select(0, words)


def bound_losses(tokens: Tokens, weight: Tensor, smoothing: float, word_sets: Tensor) -> Tensor:
    """Loss of each token among the words allowed at its position, `(N,)` float32.

    Only the logits of these words are computed. If only one word is allowed, the loss is 0.
    """
    words, places = word_sets.unique(return_inverse=True)  # −1 first, if there is any
    rows, losses = weight[words.clamp(min=0)], tokens.features.new_zeros(len(tokens.labels), dtype=torch.float32)
    for number in tokens.sets.unique():
        here = tokens.sets == number
        own = places[number][word_sets[number] >= 0]
        log_probabilities = linear(tokens.features[here], rows[own]).float().log_softmax(-1)
        target = (words[own] == tokens.labels[here, None]).long().argmax(-1, keepdim=True)
        nll = -log_probabilities.gather(-1, target)[:, 0]
        spread = smoothing / (len(own) - 1 + 1e-6)
        losses[here] = (1 - smoothing - spread) * nll - spread * log_probabilities.sum(-1)
    return losses if tokens.confidences is None else losses * tokens.confidences


def mask_of_labels(labels: Tensor) -> Tensor:
    """`(rows, T)` labels → decoder attention mask: all tokens up to a row's last label, an ignored prefix included."""
    return (labels != IGNORED_LABEL).flip(1).cumsum(1).flip(1) > 0


def without_logits(labels: Tensor) -> dict[str, Tensor]:
    """Arguments of `forward` for a loss that needs neither logits nor the features of padding."""
    nothing = torch.empty(0, dtype=torch.long, device=labels.device)
    return {"labels": labels, "decoder_attention_mask": mask_of_labels(labels), "logits_to_keep": nothing}


class FusedCrossEntropy(torch.autograd.Function):
    """Sum of smoothed cross entropies of linear logits, some tokens at a time.

    Gradients are computed in the forward pass, while a chunk's probabilities are at hand.
    """

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        features_grad = torch.empty_like(features) if wants_features else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        total = features.new_zeros((), dtype=torch.float32)
        features, weight = in_autocast_dtype(features, weight)  # once instead of in each product
        step = TOKENS_PER_CHUNK_OF_VOCABULARY if wants_weight else TOKENS_PER_CHUNK
        for start in range(0, labels.shape[0], step):
            part = slice(start, start + step)
            loss, logits_grad = loss_of_chunk(features[part], weight, labels[part, None], smoothing)
            total += loss
            if wants_features:
                features_grad[part] = linear(logits_grad, weight.T)
            if wants_weight:
                weight_grad += linear(logits_grad.T, features[part].T)
            del logits_grad  # otherwise it would exist while the next chunk is computed
        ctx.save_for_backward(features_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradients = (None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None


def loss_of_chunk(features: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Loss of some tokens and its gradient by their logits: `(N, C)`, `(V, C)`, `(N, 1)` → `()`, `(N, V)`."""
    spread = smoothing / (weight.shape[0] - 1)
    logits = linear(features, weight).float()
    # softmax is four times as fast as log_softmax, and its largest value gives the normalizer
    probabilities = logits.softmax(-1)
    log_normalizer = logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
    nll = log_normalizer - logits.gather(-1, target)
    loss = (1 - smoothing - spread) * nll.sum()
    if smoothing:
        loss += spread * (weight.shape[0] * log_normalizer.sum() - logits.sum())
        probabilities.sub_(spread)  # the factors of a token sum to one
    probabilities.scatter_add_(-1, target, torch.full_like(nll, smoothing + spread - 1))
    return loss, probabilities.to(features.dtype)


def in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """Tensors in the dtype that autocast would convert them to for a product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


@torch.no_grad()
def token_losses(features: Tensor, weight: Tensor, tokens: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of each token: `(N, C)` features, `(V, C)` weight, `(N,)` ids → `(N,)` float32."""
    spread, losses = smoothing / (weight.shape[0] - 1), []
    for part, target in zip(features.split(TOKENS_PER_CHUNK), tokens.split(TOKENS_PER_CHUNK), strict=True):
        logits = linear(part, weight).float()
        log_normalizer = logits.logsumexp(-1)
        nll = log_normalizer - logits.gather(-1, target[:, None])[:, 0]
        everything = weight.shape[0] * log_normalizer - logits.sum(-1) if smoothing else 0.0
        losses.append((1 - smoothing - spread) * nll + spread * everything)
    return torch.cat(losses)
