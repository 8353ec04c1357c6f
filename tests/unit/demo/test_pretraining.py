"""The small model of the demo."""

from random import Random

import torch

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import load_muge
from ofa_hf.demo.pretraining import Labels, Pretraining, plain_caption, pretrain, soften, vary
from ofa_hf.samples.shop import Product, is_right, read_products, write_shop


def test_the_plain_sentence_is_right_about_its_product():
    product = Product("雨伞", "红色", "圆点")
    assert is_right(plain_caption(product), product)
    assert product.pattern in plain_caption(product)


def test_labels_reward_the_right_classes():
    labels = Labels([Product("雨伞", "红色", "圆点"), Product("杯子", "白色", "纯色")])
    right = torch.cat(
        [torch.nn.functional.one_hot(labels.numbers[:, c], n) for c, n in enumerate(labels.sizes)], dim=1
    )
    assert labels.loss(30.0 * right, torch.tensor([0, 1])) < 1e-3 < labels.loss(30.0 * right, torch.tensor([1, 0]))


def test_varying_keeps_every_pixel():
    pixel_values = torch.randn(2, 3, 8, 8)
    varied = vary(pixel_values, 2, Random(3))
    assert varied.shape == pixel_values.shape
    assert not torch.equal(varied, pixel_values)
    assert torch.equal(varied.flatten().sort().values, pixel_values.flatten().sort().values)


def test_softening_takes_detail_away_from_a_share_of_the_batches():
    pixel_values, rng = torch.randn(2, 3, 8, 8), Random(0)
    softened = [soften(pixel_values, 0.5, rng) for _ in range(40)]
    changed = [one for one in softened if not torch.equal(one, pixel_values)]
    assert 10 < len(changed) < 30
    assert soften(pixel_values, 0.0, rng) is pixel_values
    assert all(one.shape == pixel_values.shape and one.var() < 0.5 * pixel_values.var() for one in changed)


def test_the_same_seed_trains_the_same_model(tmp_path):
    files = write_shop(tmp_path / "shop", num_train=6, num_valid=1, size=48)
    processor = OFAProcessor(OFAImageProcessor(size={"height": 32, "width": 32}), build_tokenizer(files.vocab_file))
    rows = load_muge(files.train_caption_file, files.train_image_file, cache_dir=tmp_path / "cache")
    products = read_products(files.label_file)
    recipe = Pretraining(epochs=2, batch_size=3)
    first, second = (pretrain(rows, products, processor, recipe, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pretrain(rows, products, processor, recipe, seed=2).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)
