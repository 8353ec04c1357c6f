"""Locked means no gradient and inference mode."""

from pathlib import Path

import pytest
import torch
from tiny_shop import weights

from ofa_hf.models import load_model
from ofa_hf.tasks_ofa import TASKS
from ofa_hf.training.arguments import FinetuneArguments
from ofa_hf.training.locking import batch_norms, count_parameters, lock, share_parts


EMBEDDING = "encoder.embed_tokens.weight"


def changed(folder, start) -> set[str]:
    before, after = weights(start), weights(folder)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def start(shop):

    return Path(shop["model_name_or_path"])


def test_a_locked_encoder_keeps_every_bit_and_its_batch_norm_statistics(train, start):
    found = changed(train(max_steps=3, freeze_word_embed=True).folder, start)
    assert found
    assert all(name.startswith("decoder.") for name in found), found


def test_the_word_embedding_is_trained_through_a_locked_encoder_unless_locked_too(train, start):
    assert EMBEDDING in changed(train("1", max_steps=3).folder, start)
    assert EMBEDDING not in changed(train("2", max_steps=3, freeze_word_embed=True).folder, start)


def test_without_a_lock_everything_that_captions_use_is_trained(train, start):
    kept = weights(start).keys() - changed(train(max_steps=3, freeze_encoder=False).folder, start)
    codes = ("image_rel_pos_table_list", "embed_image_positions", "image_pos_ln", "code_layernorm_embedding")
    assert all(name.startswith("decoder.") and any(part in name for part in codes) for name in kept), kept


def test_parts_that_no_task_uses_are_locked_and_all_others_get_gradients(start):
    summarizing, drawing, captioning = TASKS["summarization"], TASKS["image_generation"], TASKS["caption"]
    args = FinetuneArguments(model_name_or_path=str(start), dataset_name="x", freeze_encoder=False)
    asked = {"input_ids": torch.tensor([[0, 9, 2]]), "labels": torch.tensor([[9, 8, 2]])}
    codes = {"code_masks": torch.tensor([True])}
    for tasks, inputs in (
        ([summarizing], {}),
        ([drawing], codes),
        ([captioning], {"pixel_values": torch.rand(1, 3, 32, 32)}),
    ):
        model = load_model(start, device="cpu")[0]
        lock(model, args, tasks)
        model.train()
        model(**asked, **inputs).loss.backward()
        waiting = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
        assert waiting == []
        assert sum(one.requires_grad for one in model.parameters()) < len(list(model.parameters()))
    model = load_model(start, device="cpu")[0]
    lock(model, args, [captioning, drawing])
    assert all(one.requires_grad for one in model.parameters())
    assert share_parts([captioning])
    assert not share_parts([captioning, drawing])
    assert not share_parts([summarizing, captioning])


def test_freeze_resnet_fixes_batch_norm_alone(train, start):
    found = changed(train(max_steps=3, freeze_encoder=False, freeze_resnet=True).folder, start)
    assert not {name for name in found if ".bn" in name or "downsample.1" in name}
    assert "encoder.embed_images.layer1.0.conv1.weight" in found


def test_batch_norm_stays_fixed_though_the_trainer_calls_train(parse):
    args = parse(freeze_encoder=False, freeze_resnet=True)[0]
    model = load_model(args.model_name_or_path, device="cpu")[0]
    lock(model, args)
    model.train()
    model.encoder.embed_images(torch.rand(2, 3, 32, 32))
    assert batch_norms(model)
    assert all(int(norm.num_batches_tracked) == 0 for norm in batch_norms(model))


def test_shared_weights_count_once(parse):
    args = parse(freeze_word_embed=True)[0]
    model = load_model(args.model_name_or_path, device="cpu")[0]
    lock(model, args)
    count = count_parameters(model)
    assert count.trained + count.locked == sum(parameter.numel() for parameter in model.parameters())
    assert count.trained == sum(one.numel() for one in model.decoder.parameters() if one.requires_grad)
    assert f"{count.trained:,} weights are trained" in str(count)
