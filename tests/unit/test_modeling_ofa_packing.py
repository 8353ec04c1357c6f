"""Texts without their padding train like texts with it."""

import copy

import pytest
import torch

from ofa_hf.modeling_ofa import OFAForConditionalGeneration
from ofa_hf.modeling_ofa_packing import RealTokens


LABELS = torch.tensor([[5, 6, -100, -100], [-100, 7, 8, -100], [-100, -100, -100, -100]])


def test_tokens_up_to_the_last_label_are_real_an_ignored_prefix_too():
    tokens = RealTokens.of_labels(LABELS, -100)
    assert tokens.index.tolist() == [0, 1, 4, 5, 6]
    assert tokens.pack(LABELS).tolist() == [5, 6, -100, 7, 8]


def test_unpacking_undoes_packing_and_so_do_their_gradients():
    tokens, states = RealTokens.of_labels(LABELS, -100), torch.randn(3, 4, 2, requires_grad=True)
    again = tokens.unpack(tokens.pack(states))
    kept = torch.zeros(12, dtype=torch.bool).index_fill(0, tokens.index, True).view(3, 4, 1)
    assert torch.equal(again, states * kept)
    goal = torch.randn(3, 4, 2)
    (again * goal).sum().backward()
    assert torch.equal(states.grad, goal * kept)


@pytest.mark.parametrize("labels", [torch.ones(2, 3), torch.full((2, 3), -100)])
def test_texts_without_padding_and_padding_without_texts_stay_as_they_are(labels):
    assert RealTokens.of_labels(labels, -100) is None


def trained(model, batch, **options) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, **options).loss
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.fixture
def packed_lengths(monkeypatch):
    """Numbers of tokens that decoder layers get where padding was taken out."""
    lengths, pack = [], RealTokens.pack
    monkeypatch.setattr(RealTokens, "pack", lambda self, states: lengths.append(len(self.index)) or pack(self, states))
    return lengths


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_loss_and_gradients_are_those_of_padded_texts(
    tiny_model, tiny_batch, packed_lengths, implementation, recomputes
):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation(implementation)
    more = torch.full((3, 5), -100)
    more[:, :2] = torch.randint(4, 120, (3, 2))
    batch = {**tiny_batch, "labels": torch.stack([tiny_batch["labels"], more], 1).flatten(0, 1)}  # two an image
    padded = trained(model, batch)
    assert not packed_lengths
    if recomputes:
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm2d):
                module.eval()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = trained(model, batch, return_logits=False)
    assert set(packed_lengths) == {12 + 6}
    assert packed[0] == pytest.approx(padded[0], rel=1e-6)
    assert packed[1].keys() == padded[1].keys()
    for name, gradient in padded[1].items():
        assert (packed[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_whole_samples_are_dropped_so_their_padding_stays(tiny_config, tiny_batch, packed_lengths):
    config = copy.deepcopy(tiny_config)
    config.decoder_drop_path_rate = 0.5
    model = OFAForConditionalGeneration(config).train()
    model(**tiny_batch, return_logits=False).loss.backward()
    assert not packed_lengths


def test_evaluation_leaves_padding_out_too(tiny_model, tiny_batch, packed_lengths):
    with torch.no_grad():
        loss = tiny_model(**tiny_batch, return_logits=False).loss
        assert loss.item() == pytest.approx(tiny_model(**tiny_batch).loss.item(), rel=1e-6)
    assert packed_lengths
