"""The loss of training: the official formula, in pieces, without logits, without padding."""

import copy

import pytest
import torch

from ofa_hf.fast_ofa import RealTokens
from ofa_hf.modeling_ofa import OFAForConditionalGeneration
from ofa_hf.training import losses as module
from ofa_hf.training.losses import (
    FusedCrossEntropy,
    mask_of_labels,
    smoothed_cross_entropy,
    token_losses,
    without_logits,
)


LABELS = torch.tensor([[5, 6, -100, -100], [-100, 7, 8, -100], [-100, -100, -100, -100]])


def official_losses(features, weight, labels, smoothing):
    """The official formula, token by token, in float64."""
    log_probabilities = (features.double() @ weight.double().T).log_softmax(-1)
    spread = smoothing / (weight.shape[0] - 1)
    own = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    return (1 - smoothing - spread) * own - spread * log_probabilities.sum(-1)


def trained(model, **batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.fixture
def model(tiny_model):
    model = copy.deepcopy(tiny_model)
    model.loss_function = smoothed_cross_entropy
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tokens_per_chunk", [1, 4, 7, 512])
def test_fused_loss_equals_plain_cross_entropy_in_value_and_gradients(monkeypatch, dtype, smoothing, tokens_per_chunk):
    monkeypatch.setattr(module, "TOKENS_PER_CHUNK", tokens_per_chunk)
    monkeypatch.setattr(module, "TOKENS_PER_CHUNK_OF_VOCABULARY", tokens_per_chunk)
    features, weight = torch.randn(11, 8).to(dtype), torch.randn(23, 8).to(dtype)
    labels = torch.randint(0, 23, (11,))
    ours = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = FusedCrossEntropy.apply(*ours, labels, smoothing)
    losses = official_losses(*theirs, labels, smoothing)
    (3 * loss).backward()
    (3 * losses.sum()).backward()
    exact = dtype == torch.float32
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-6 if exact else 1e-2)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad - other.grad).norm() < (1e-5 if exact else 2e-2) * other.grad.norm()
    assert (token_losses(features, weight, labels, smoothing) - losses).abs().max() < (1e-5 if exact else 0.1)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_fused_loss_computes_only_the_gradients_that_are_needed(needed):
    features, weight, labels = torch.randn(5, 4), torch.randn(9, 4), torch.randint(0, 9, (5,))
    tensors = [tensor.requires_grad_(need) for tensor, need in zip((features, weight), needed, strict=True)]
    FusedCrossEntropy.apply(*tensors, labels, 0.1).backward()
    assert tuple(tensor.grad is not None for tensor in tensors) == needed


def test_evaluating_the_loss_computes_no_gradients(model, tiny_batch, monkeypatch):
    expected = model(**tiny_batch).loss.item()
    monkeypatch.setattr(FusedCrossEntropy, "apply", lambda *_: pytest.fail("the training kernel ran"))
    with torch.no_grad():
        assert model(**tiny_batch).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_real_tokens(model, tiny_batch, smoothing):
    labels = tiny_batch["labels"]
    output = model(**tiny_batch, label_smoothing=smoothing, output_hidden_states=True)
    features = output.decoder_hidden_states[-1][labels != -100]
    weight = model.get_output_embeddings().weight
    expected = official_losses(features, weight, labels[labels != -100], smoothing).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_without_logits_is_the_same_with_the_same_gradients(model, tiny_batch):
    with_logits = trained(model, **tiny_batch, label_smoothing=0.1)
    lean = tiny_batch | without_logits(tiny_batch["labels"])
    assert model(**lean).logits is None
    without = trained(model, **lean, label_smoothing=0.1)
    assert without[0] == pytest.approx(with_logits[0], rel=1e-6)
    assert with_logits[1].keys() == without[1].keys()
    for name, gradient in with_logits[1].items():
        assert (without[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_worst_tokens_are_left_out_on_request(model, tiny_batch):
    labels = tiny_batch["labels"]
    output = model(**tiny_batch, drop_worst_ratio=0.3, output_hidden_states=True)
    features = output.decoder_hidden_states[-1][labels != -100]
    losses = official_losses(features, model.get_output_embeddings().weight, labels[labels != -100], 0.0)
    kept = losses.sort().values[: int(len(losses) * 0.7)]
    assert output.loss.item() == pytest.approx(kept.mean().item(), rel=1e-5)


def test_tokens_up_to_the_last_label_are_real_an_ignored_prefix_too():
    assert mask_of_labels(LABELS).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.fixture
def real_lengths(monkeypatch):
    """Numbers of tokens that decoder layers get where padding was removed."""
    lengths, gather = [], RealTokens.gather
    monkeypatch.setattr(
        RealTokens, "gather", lambda self, states: lengths.append(len(self.index)) or gather(self, states)
    )
    return lengths


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_loss_and_gradients_are_those_of_padded_texts(model, tiny_batch, real_lengths, implementation, recomputes):
    model.set_attn_implementation(implementation)
    more = torch.full((3, 5), -100)
    more[:, :2] = torch.randint(4, 120, (3, 2))
    batch = {**tiny_batch, "labels": torch.stack([tiny_batch["labels"], more], 1).flatten(0, 1)}  # two an image
    padded = trained(model, **batch)
    assert not real_lengths
    if recomputes:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm2d):
                module.eval()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = trained(model, **batch | without_logits(batch["labels"]))
    assert set(real_lengths) == {12 + 6}
    assert packed[0] == pytest.approx(padded[0], rel=1e-6)
    assert packed[1].keys() == padded[1].keys()
    for name, gradient in padded[1].items():
        assert (packed[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_whole_samples_are_dropped_so_their_padding_stays(tiny_config, tiny_batch, real_lengths):
    config = copy.deepcopy(tiny_config)
    config.decoder_drop_path_rate = 0.5
    model = OFAForConditionalGeneration(config).train()
    model.loss_function = smoothed_cross_entropy
    model(**tiny_batch | without_logits(tiny_batch["labels"])).loss.backward()
    assert not real_lengths


def test_evaluation_leaves_padding_out_too(model, tiny_batch, real_lengths):
    with torch.no_grad():
        loss = model(**tiny_batch | without_logits(tiny_batch["labels"])).loss
        assert loss.item() == pytest.approx(model(**tiny_batch).loss.item(), rel=1e-6)
    assert real_lengths


@pytest.fixture(params=["few words", "many words"])
def tokens(request, monkeypatch):
    """Features, weight and labels of two rows, and the words that may stand at some places."""
    if request.param == "many words":
        monkeypatch.setattr(module, "MANY_WORDS", 1)
    features, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.tensor([[4, 5, -100], [6, 7, 8]])
    bound = {
        "word_sets": torch.tensor([[5, 6, 9], [4, 7, -1]]),
        "set_numbers": torch.tensor([[1, 0, -1], [-1, 1, -1]]),
    }
    return features, weight, labels, bound


@pytest.mark.parametrize("is_bound", [False, True])
def test_a_rows_confidence_is_a_factor_of_its_loss(tokens, is_bound):
    features, weight, labels, bound = tokens
    options = {"num_items_in_batch": 1, "label_smoothing": 0.1, **(bound if is_bound else {})}
    confidences = torch.tensor([0.3, 2.0])
    whole = smoothed_cross_entropy(features, weight, labels, confidences=confidences, **options)
    parts = []
    for row in (0, 1):
        alone = labels.clone()
        alone[1 - row] = -100
        parts.append(smoothed_cross_entropy(features, weight, alone, **options))
    assert whole.item() == pytest.approx((0.3 * parts[0] + 2.0 * parts[1]).item(), rel=1e-5)
    with torch.no_grad():
        found = smoothed_cross_entropy(features, weight, labels, confidences=confidences, **options)
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_only_the_words_that_may_stand_at_a_place_count(tokens, smoothing):
    features, weight, labels, bound = tokens
    loss = smoothed_cross_entropy(features, weight, labels, num_items_in_batch=1, label_smoothing=smoothing, **bound)
    expected = 0.0
    for row, column in torch.nonzero(labels != -100).tolist():
        number = int(bound["set_numbers"][row, column])
        words = bound["word_sets"][number] if number >= 0 else torch.arange(11)
        logits = (features[row, column].double() @ weight.double().T)[words[words >= 0]]
        log_probabilities = logits.log_softmax(-1)
        spread = smoothing / (len(logits) - 1 + (1e-6 if number >= 0 else 0))
        own = log_probabilities[words[words >= 0] == labels[row, column]]
        expected -= (1 - smoothing - spread) * own.sum() + spread * log_probabilities.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(loss, tokens[:2], retain_graph=True)
    theirs = torch.autograd.grad(expected, tokens[:2])
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 1e-5 * other.norm()


def test_the_worst_tokens_are_left_out_of_bound_ones_too(tokens):
    features, weight, labels, bound = tokens
    all_losses = [
        smoothed_cross_entropy(features, weight, labels.where(torch.arange(6).view(2, 3) == place, -100), 1, **bound)
        for place in (0, 1, 3, 4, 5)
    ]
    kept = sorted(loss.item() for loss in all_losses)[:3]
    found = smoothed_cross_entropy(features, weight, labels, 1, drop_worst_ratio=0.4, **bound)
    assert found.item() == pytest.approx(sum(kept), rel=1e-5)


def test_codes_need_no_logits_of_the_other_words(tokens):
    features, weight, labels, _ = tokens
    bound = {"word_sets": torch.tensor([[4, 5, 6, 7, 8]]), "set_numbers": torch.zeros_like(labels)}
    loss = smoothed_cross_entropy(features, weight, labels, **bound)
    loss.backward()
    assert (weight.grad[4:9] != 0).all()
    assert not weight.grad[:4].any()
    assert not weight.grad[9:].any()
