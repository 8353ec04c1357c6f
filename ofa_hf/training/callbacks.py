"""Callbacks of a run: progress bar and log lines, the training curve, a clean stop on a signal."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import ProgressCallback, TrainerCallback

from ofa_hf.training.curve import curves_of, draw_curves, score_title


CURVE_FILE = "training_curve.png"
SHOWN = {  # parts of a log line, in this order, before the scores
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.4f}",
    "grad_norm": "gradient {:.3g}",
    "learning_rate": "learning rate {:.3g}",
    "eval_loss": "evaluation loss {:.4f}",
}


def log_line(step: int, logs: dict) -> str:
    """A readable line for what the Trainer logged; empty if it contains neither a loss nor scores."""
    if "loss" not in logs and "eval_loss" not in logs:
        return ""
    formats = {**SHOWN, **{name: f"{title} {{:.4f}}" for name in logs if (title := score_title(name))}}
    return " · ".join(
        [f"step {step:,}", *(form.format(float(logs[key])) for key, form in formats.items() if key in logs)]
    )


class ShowProgress(ProgressCallback):
    """The Trainer's progress bars with readable lines, all on stderr: stdout is for results."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:  # steps before resuming must not count for the speed
            self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        line = log_line(state.global_step, logs or {})
        if line and self.training_bar is not None:
            self.training_bar.write(line, file=sys.stderr)


class PrintLines(TrainerCallback):
    """The same lines without progress bars, for `disable_tqdm`."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        line = log_line(state.global_step, logs or {})
        if line and state.is_world_process_zero:
            sys.stderr.write(f"{line}\n")


class KeepCurve(TrainerCallback):
    """Writes the training curve to the output folder whenever a checkpoint is saved, and at the end."""

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


class SetSamplerEpoch(TrainerCallback):
    """Sets the epoch of a sampler.

    After resuming in the middle of an epoch with several processes, the data loader is wrapped more deeply than
    accelerate's `set_epoch` reaches, so without this every epoch would repeat the order of the first.
    """

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.sampler.set_epoch(int(state.epoch))


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM, finishes the step, saves a checkpoint and stops. A later Ctrl-C stops at once."""

    signals = (signal.SIGINT, signal.SIGTERM)
    repeated_within = 2.0  # seconds; a launcher of several processes forwards a signal that they have already received

    def __init__(self):
        self.received: int | None = None
        self._since = 0.0
        self._prints = False
        self._previous: dict = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._prints = state.is_world_process_zero
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._previous = {number: signal.signal(number, self._receive) for number in self.signals}

    def _receive(self, number, frame) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            if self._prints:  # bypasses Python's buffers: the signal may have interrupted a write
                os.write(2, b"\nStopping after this step with a checkpoint. Press Ctrl-C again to stop at once.\n")
        elif number == signal.SIGINT and now - self._since > self.repeated_within:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.received = self._of_any_process(args)
        if self.received:
            control.should_save, control.should_training_stop = True, True
            args.load_best_model_at_end = False  # otherwise it would remove the checkpoint that is about to be saved

    def _of_any_process(self, args) -> int | None:
        """The signal that any process has received, so that all stop after the same step."""
        if args.world_size == 1:
            return self.received
        received = torch.tensor(int(self.received or 0), device=args.device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received) or None
