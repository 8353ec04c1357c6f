"""Removing padding and putting it back."""

import pytest
import torch

from ofa_hf.fast_ofa import RealTokens, find_real_tokens


MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])


def test_scattering_undoes_gathering_and_so_do_their_gradients():
    tokens, states = RealTokens(MASK), torch.randn(3, 4, 2, requires_grad=True)
    again = tokens.scatter(tokens.gather(states))
    assert torch.equal(again, states * MASK[..., None])
    goal = torch.randn(3, 4, 2)
    (again * goal).sum().backward()
    assert torch.equal(states.grad, goal * MASK[..., None])


def test_the_real_tokens_are_found():
    assert find_real_tokens(MASK).index.tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.zeros(2, 3)])
def test_texts_without_padding_and_padding_without_texts_stay_as_they_are(mask):
    assert find_real_tokens(mask) is None


def test_nothing_is_removed_without_fast_code(plain_torch):
    assert find_real_tokens(MASK) is None
