"""Signals during training: where they cut at once, what is saved, and what stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.signals import Interrupted
from tests.training import tiny_training as tiny


class LongSolve(torch.autograd.Function):
    """The identity, whose backward pass takes a minute in small steps."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        endless(gradient)
        return gradient


def endless(x: torch.Tensor) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        x = x * 1.0
    raise AssertionError("nobody cut this")


class Slow(nn.Module):
    """At step 3, an endless forward or backward pass that is interrupted a little later."""

    def __init__(self, task: tiny.TinyTask, where: str, signum: int) -> None:
        super().__init__()
        self.task, self.where, self.signum = [task], where, signum

    def interrupt(self, *_) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.kill(os.getpid(), self.signum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.task[0].global_step < 3 or not self.training:
            return x
        signal.signal(signal.SIGALRM, self.interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        if self.where == "forward":
            endless(x)
        return LongSolve.apply(x)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_long_solve_is_cut_at_once_and_its_start_is_saved(tmp_path, where, signum):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    task = tiny.make_task()
    task.model.append(Slow(task, where, signum))
    trainer = tiny.make_trainer(tmp_path)
    start = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        trainer.fit(task, tiny.TinyLoader(trainer), tiny.Valid([torch.ones(2, 1)]))
    assert time.monotonic() - start < 20
    assert caught.value.exit_status == 128 + signum
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert torch.is_grad_enabled()


class Stop(Callback):
    def __init__(self, hook: str) -> None:
        self.hook = hook

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.hook == "on_train_epoch_end":
            signal.raise_signal(signal.SIGTERM)

    def on_train_end(self, trainer, pl_module) -> None:
        if self.hook == "on_train_end":
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end"])
def test_a_signal_after_the_last_step_is_not_lost(tmp_path, hook):
    with pytest.raises(Interrupted):
        tiny.fit(tiny.make_trainer(tmp_path, 1, Stop(hook)), tmp_path)


def test_a_pass_that_changed_buffers_is_cut_but_not_saved(tmp_path):
    task = tiny.make_task()
    task.model.append(nn.BatchNorm1d(1))
    task.model.append(Slow(task, "forward", signal.SIGINT))
    trainer = tiny.make_trainer(tmp_path)
    with pytest.raises(Interrupted):
        trainer.fit(task, tiny.TinyLoader(trainer), tiny.Valid([torch.ones(2, 1)]))
    found = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert found["global_step"] == 0
    assert found["state_dict"]["model.4.num_batches_tracked"] == 0


def test_an_error_is_passed_on_and_leaves_the_last_checkpoint(tmp_path):
    class Failing(Callback):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            if trainer.global_step == 5:
                raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError, match="not finite"):
        tiny.fit(tiny.make_trainer(tmp_path, 5, Failing()), tmp_path)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_process_ends_with_128_and_the_signals_number(tmp_path, signum):
    command = [*tiny.COMMAND, str(tmp_path), "1000", "0.02"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert errors == ""  # and Lightning is silent
