"""What random moments hit too rarely."""

import time
from pathlib import Path

import tiny_shop
from stress import processes
from stress.crash import FinetuneInTwo
from transformers import Seq2SeqTrainer


class SlowSecondProcess(FinetuneInTwo):
    """Its second process is late with its part of every checkpoint."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.arguments = tiny_shop.write_arguments(folder / "args.json", self.shop(folder / "shop"))

    def run(self, place: Path) -> int:
        save = Seq2SeqTrainer._save_rng_state

        def save_late(trainer, folder):
            time.sleep(trainer.args.process_index)
            save(trainer, folder)

        Seq2SeqTrainer._save_rng_state = save_late
        return super().run(place)


def test_a_checkpoint_is_complete_only_when_every_process_has_written_its_part(tmp_path):
    job, last_file = SlowSecondProcess(tmp_path / "inputs"), "out/checkpoint-2/trainer_state.json"
    child = processes.fork(lambda: job.run(tmp_path), tmp_path / "log")
    while not (tmp_path / last_file).exists():
        assert processes.ended(child, 0.005) is None, processes.tail(tmp_path / "log")
    processes.kill_group(child)
    assert (tmp_path / "out/checkpoint-2/rng_state_1.pth").exists()
