"""The image trunk: sizes, stochastic depth, and the same result whatever the memory layout or gradient mode."""

import copy

import pytest
import torch

from ofa_hf.configuration_ofa import RESNET_BLOCKS
from ofa_hf.modeling_ofa_resnet import OUTPUT_CHANNELS, OFAResNet, drop_path, linear_rates


@pytest.fixture(scope="module")
def trunk(tiny_model):
    return tiny_model.encoder.embed_images


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (50, 70), (1, 1), (17, 33)])
def test_one_cell_covers_16_pixels_rounded_up(trunk, height, width):
    with torch.no_grad():
        features = trunk(torch.randn(1, 3, height, width))
    assert features.shape == (1, OUTPUT_CHANNELS, -(-height // 16), -(-width // 16))
    assert features.isfinite().all()


@pytest.mark.parametrize("resnet_type", RESNET_BLOCKS)
def test_trunk_has_the_blocks_of_its_type(resnet_type):
    with torch.device("meta"):
        trunk = OFAResNet(resnet_type)
    assert (len(trunk.layer1), len(trunk.layer2), len(trunk.layer3)) == RESNET_BLOCKS[resnet_type]


def test_inference_gives_the_same_with_and_without_gradients(trunk):
    pixels = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        without = trunk(pixels)
    torch.testing.assert_close(without, trunk(pixels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        trunk(pixels.to(memory_format=torch.channels_last)), trunk(pixels), rtol=1e-4, atol=1e-5
    )


def test_inference_follows_a_change_of_weights_or_statistics(trunk):
    trunk, pixels = copy.deepcopy(trunk), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = trunk(pixels)
        trunk.layer2[0].bn2.running_mean.add_(0.5)
        trunk.conv1.weight.data.mul_(1.1)  # leaves no trace in version counters
        after = trunk(pixels)
        torch.testing.assert_close(after, copy.deepcopy(trunk)(pixels), rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_images_of_a_batch_do_not_influence_each_other(trunk):
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(trunk(pixels)[1:2], trunk(pixels[1:2]), rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_samples_and_scales_the_others():
    branch = torch.rand(400, 3, 5) + 1
    dropped = drop_path(branch, 0.25, training=True)
    is_kept = (dropped != 0).flatten(1)
    assert (is_kept.all(1) | ~is_kept.any(1)).all()
    assert 0.65 < is_kept[:, 0].float().mean() < 0.85
    torch.testing.assert_close(dropped[is_kept[:, 0]], branch[is_kept[:, 0]] / 0.75)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.9, False)])
def test_drop_path_leaves_everything_without_a_rate_or_in_inference(rate, training):
    branch = torch.randn(50, 2)
    assert drop_path(branch, rate, training) is branch


def test_rates_rise_linearly_and_the_first_block_of_a_stage_never_drops():
    assert linear_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == [0.0]
    trunk = OFAResNet("resnet50", drop_path_rate=0.4)
    assert [block.drop_path_rate for block in trunk.layer2] == pytest.approx([0.0, 0.4 / 3, 0.8 / 3, 0.4])
    assert [stage[0].drop_path_rate for stage in (trunk.layer1, trunk.layer2, trunk.layer3)] == [0.0] * 3
