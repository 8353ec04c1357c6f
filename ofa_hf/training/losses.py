"""The loss of training: smoothed cross entropy whose logits never exist as a whole.

`model.loss_function = smoothed_cross_entropy` makes `forward` call it with the decoder's features, so nobody has to
compute logits, which need far more memory than the rest.
"""

import torch
from torch import Tensor

from ofa_hf.fast_ofa import linear
from ofa_hf.modeling_ofa import IGNORED_LABEL


TOKENS_PER_CHUNK = 192  # 23 MB of logits, below what glibc reuses without asking the system for new memory
TOKENS_PER_CHUNK_OF_VOCABULARY = 256  # where the vocabulary is trained: its gradient adds up over a chunk's tokens


def smoothed_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    label_smoothing: float = 0.0,
    drop_worst_ratio: float = 0.0,
    **kwargs,
) -> Tensor:
    """Smoothed cross entropy over the real tokens: their mean, or their sum divided by `num_items_in_batch`.

    Args:
        features: `(rows, T, C)`, the decoder's.
        weight: `(V, C)`, of the output projection.
        labels: `(rows, T)`, the token that each position should predict; −100 = ignored.
        label_smoothing: share ε of the target spread over the vocabulary. With `ε_i = ε / (V - 1)` a token's loss is
            `(1 - ε - ε_i) * nll + ε_i * Σ_v -log p_v`.
        drop_worst_ratio: share of the real tokens, those with the highest loss, that is left out.

    Source: OFA `criterions/label_smoothed_cross_entropy.py`.
    """
    is_real = labels != IGNORED_LABEL
    features, labels = features[is_real], labels[is_real]
    if drop_worst_ratio:
        losses = token_losses(features, weight, labels, label_smoothing)
        kept = losses.topk(int(len(losses) * (1 - drop_worst_ratio)), largest=False).indices
        features, labels = features[kept], labels[kept]
    if torch.is_grad_enabled():
        total = FusedCrossEntropy.apply(features, weight, labels, label_smoothing)
    else:  # the fused one would compute gradients that nobody asked for
        total = token_losses(features, weight, labels, label_smoothing).sum()
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


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
        features, weight = in_autocast_dtype(features, weight)  # once, and not in each product
        step = TOKENS_PER_CHUNK_OF_VOCABULARY if wants_weight else TOKENS_PER_CHUNK
        for start in range(0, labels.shape[0], step):
            part = slice(start, start + step)
            loss, logits_grad = loss_of_chunk(features[part], weight, labels[part, None], smoothing)
            total += loss
            if wants_features:
                features_grad[part] = linear(logits_grad, weight.T)
            if wants_weight:
                weight_grad += linear(logits_grad.T, features[part].T)
            del logits_grad  # or it would still exist while the next chunk is computed
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
        probabilities.sub_(spread)  # the factors of a token add up to one
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
