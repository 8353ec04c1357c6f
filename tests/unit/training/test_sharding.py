"""FSDP: weights spread over two processes train as weights that are whole; this file is also what the two run."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from small_checkpoints import make_config
from torch import nn

from ofa_hf import OFAForConditionalGeneration


STEPS, BATCH = 3, 4


def make_model(locked: bool) -> OFAForConditionalGeneration:
    torch.manual_seed(0)
    config = make_config()
    config.dropout = 0.0
    model = OFAForConditionalGeneration(config)
    if locked:
        model.lock_encoder()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # its statistics would be those of half a batch
            module.eval()
    return model


def make_batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    prompts, labels = (torch.randint(4, 20, (BATCH, length), generator=draw) for length in (6, 5))
    images = torch.randn(BATCH, 3, 64, 64, generator=draw)
    return {"input_ids": prompts, "pixel_values": images, "labels": labels}


def train(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(STEPS):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def compare(locked: bool) -> None:
    """In each of two processes: train on half of the batch, sharded, and on the whole batch, unsharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded, whole, batch = make_model(locked), make_model(locked), make_batch()
    before = copy.deepcopy(whole.state_dict())
    mesh = init_device_mesh("cpu", (2,))
    for layer in [*sharded.encoder.layers, *sharded.decoder.layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    kept = sum(weight.to_local().numel() for weight in sharded.parameters())
    assert kept < 0.51 * sum(weight.numel() for weight in whole.parameters())

    half = slice(2 * torch.distributed.get_rank(), 2 * torch.distributed.get_rank() + 2)
    train(sharded, {name: tensor[half] for name, tensor in batch.items()})
    train(whole, batch)
    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    if torch.distributed.get_rank() == 0:  # it alone gets them
        for name, weight in whole.state_dict().items():
            torch.testing.assert_close(gathered[name], weight, atol=1e-6, rtol=1e-5, msg=name)
        name = "decoder.layers.0.fc1.weight"
        assert not torch.equal(whole.state_dict()[name], before[name])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo's collectives for FSDP")
def test_weights_spread_over_two_processes_train_as_whole_ones(forks):
    root = Path(__file__).parents[3]
    paths = [root, root / "tests", *sys.path]  # sys.path: the same transformers as here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    ran = forks.run_ranks([sys.executable, __file__], env=environment)
    assert [one.returncode for one in ran] == [0, 0], ran[0].stderr + ran[1].stderr


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for is_locked in (False, True):
        compare(is_locked)
    torch.distributed.barrier()
    os._exit(0)  # seldom, torch's threads abort an interpreter that is taken down (pytorch/pytorch#179291)
