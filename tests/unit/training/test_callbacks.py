"""Lines on stderr, and a clean stop."""

import os
import signal
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from ofa_hf.training.callbacks import PrintLines, StopOnSignal, log_line


ARGS = SimpleNamespace(world_size=1, load_best_model_at_end=True)


@pytest.fixture
def stop():
    callback = StopOnSignal()
    before = {number: signal.getsignal(number) for number in StopOnSignal.signals}
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    yield callback
    callback.restore()
    assert {number: signal.getsignal(number) for number in StopOnSignal.signals} == before


@pytest.mark.parametrize("number", StopOnSignal.signals)
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(stop, number):
    args, control = SimpleNamespace(**vars(ARGS)), TrainerControl()
    stop.on_step_end(args, TrainerState(), control)
    assert not control.should_training_stop
    os.kill(os.getpid(), number)
    stop.on_step_end(args, TrainerState(), control)
    assert control.should_save
    assert control.should_training_stop
    assert stop.received == number
    assert not args.load_best_model_at_end, "loading the best would remove the checkpoint just written"


def test_what_a_launcher_repeats_at_once_does_not_cut_the_step_short(stop):
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop.received == signal.SIGINT


def test_a_later_second_interrupt_ends_at_once(stop, monkeypatch):
    monkeypatch.setattr(StopOnSignal, "repeated_within", -1.0)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_logged_line_is_readable():
    line = log_line(1200, {"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 5e-5, "epoch": 2.0, "other": 1})
    assert line == "step 1,200 · epoch 2.00 · loss 1.2346 · gradient 0.5 · learning rate 5e-05"


def test_runtimes_make_no_line():
    assert log_line(3, {"train_runtime": 1.0}) == ""


def test_lines_go_to_stderr(capsys):
    PrintLines().on_log(ARGS, TrainerState(is_world_process_zero=True), TrainerControl(), logs={"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "step 0 · loss 1.0000\n"
