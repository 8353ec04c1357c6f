"""What happens beside the training steps: a bar and a line of numbers, a curve kept up to date, a clean stop."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import ProgressCallback, TrainerCallback

from ofa_hf.training.curve import curves_of, draw_curves


CURVE_FILE = "training_curve.png"
SHOWN = {  # what a logged line shows, in this order
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.4f}",
    "grad_norm": "gradient {:.3g}",
    "learning_rate": "learning rate {:.3g}",
    "eval_loss": "evaluation loss {:.4f}",
    "eval_cider_d": "CIDEr-D {:.4f}",
    "eval_bleu_4": "BLEU-4 {:.4f}",
    "eval_rouge_l": "ROUGE-L {:.4f}",
}


def log_line(step: int, logs: dict) -> str:
    """One readable line of what the Trainer logged; empty if it says nothing of loss or scores."""
    if "loss" not in logs and "eval_loss" not in logs:
        return ""
    return " · ".join(
        [f"step {step:,}", *(form.format(float(logs[key])) for key, form in SHOWN.items() if key in logs)]
    )


class ShowProgress(ProgressCallback):
    """The Trainer's bars with readable lines, all of it on stderr: stdout is for results."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:  # steps of before a resumption say nothing about the speed
            self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        line = log_line(state.global_step, logs or {})
        if line and self.training_bar is not None:
            self.training_bar.write(line, file=sys.stderr)


class PrintLines(TrainerCallback):
    """The same lines without bars, for `disable_tqdm`."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        line = log_line(state.global_step, logs or {})
        if line and state.is_world_process_zero:
            sys.stderr.write(f"{line}\n")


class KeepCurve(TrainerCallback):
    """Draws the losses so far into the output folder whenever a checkpoint is saved and at the end."""

    def on_save(self, args, state, control, **kwargs) -> None:
        self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._draw(args, state)

    @staticmethod
    def _draw(args, state) -> None:
        curves = curves_of(state.log_history)
        if state.is_world_process_zero and curves:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            draw_curves(curves, Path(args.output_dir) / CURVE_FILE)


class TellEpoch(TrainerCallback):
    """Tells a sampler which epoch begins.

    A data loader that skips batches in several processes, as after resuming in the middle of an epoch, has more layers
    than accelerate passes the epoch through, and every epoch would have the order of the first.
    """

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.sampler.set_epoch(int(state.epoch))


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM finishes the step, writes a checkpoint and ends training. A later Ctrl-C ends at once."""

    signals = (signal.SIGINT, signal.SIGTERM)
    repeated_within = 2.0  # seconds; a launcher of several processes passes on the signal that they already got

    def __init__(self):
        self.received: int | None = None
        self._since = 0.0
        self._speaks = False
        self._previous: dict = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._speaks = state.is_world_process_zero
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._receive) for number in self.signals}

    def _receive(self, number, frame) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            if self._speaks:  # past Python's buffers, which the signal may have caught in the middle of a write
                os.write(2, b"\nStopping after this step and writing a checkpoint; Ctrl-C again stops at once.\n")
        elif number == signal.SIGINT and now - self._since > self.repeated_within:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.received = self._of_any_process(args)
        if self.received:
            control.should_save, control.should_training_stop = True, True
            args.load_best_model_at_end = False  # it would remove the checkpoint that is about to be written

    def _of_any_process(self, args) -> int | None:
        """All processes stop after the same step, whichever got the signal."""
        if args.world_size == 1:
            return self.received
        received = torch.tensor(int(self.received or 0), device=args.device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received) or None
