"""The command `finetune` around the training itself."""

from pathlib import Path

import pytest
import torch

from ofa_hf import training
from ofa_hf.cli import main
from ofa_hf.training import FinetuneResult, TrainingStopped


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process only")
@pytest.mark.parametrize(("error", "status"), [(None, 0), (TrainingStopped("Stopped at step 7.", 15), 143)])
def test_the_group_of_processes_is_left_when_training_ends(monkeypatch, tmp_path, error, status):
    def finetune(*args):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        if error:
            raise error
        return FinetuneResult(Path("model"), {"train_loss": 1.25}, num_steps=3, cut_targets=0)

    monkeypatch.setattr(training, "finetune", finetune)
    arguments = ["--model_name_or_path=model", "--dataset_name=shop", f"--output_dir={tmp_path}"]
    assert main(["finetune", *arguments]) == status
    assert not torch.distributed.is_initialized()
