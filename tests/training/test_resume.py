"""A run that was stopped anywhere and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.signals import Interrupted
from tests.training import tiny_training as tiny


class SignalAt(Callback):
    """Sends a signal to this process when a hook is reached with at least so many steps done."""

    def __init__(self, hook: str, step: int, signum: int = signal.SIGINT) -> None:
        self.step, self.signum = step, signum
        setattr(self, hook, self._reached)

    def _reached(self, trainer, *args) -> None:
        if trainer.global_step >= self.step:
            self.step = 10**9
            signal.raise_signal(self.signum)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    return tiny.fit(tiny.make_trainer(run_dir), run_dir).state_dict(), tiny.reproducible(run_dir), tiny.best(run_dir)


HOOKS = [
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_end",
    "on_train_epoch_end",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_stopped_anywhere_in_a_step_or_a_validation(tmp_path, whole, hook):
    with pytest.raises(Interrupted):
        tiny.fit(tiny.make_trainer(tmp_path, 5, SignalAt(hook, 13)), tmp_path)
    if hook in ("on_train_batch_start", "on_before_backward"):  # cut at once, and nothing lost
        assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 13
    tiny.assert_same_run(tmp_path, tiny.fit(tiny.make_trainer(tmp_path), tmp_path).state_dict(), whole)


@pytest.mark.parametrize(("hook", "validated"), [("on_before_backward", 10), ("on_validation_end", 20)])
def test_the_best_weights_are_on_the_disk_when_a_run_stops(tmp_path, hook, validated):
    with pytest.raises(Interrupted):
        tiny.fit(tiny.make_trainer(tmp_path, 5, SignalAt(hook, 13)), tmp_path)
    last, best = (read_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    score = next(v for k, v in last["callbacks"].items() if k.startswith("BestCheckpoint"))["best_model_score"]
    assert score is not None and best["global_step"] == validated


def test_stopped_five_times(tmp_path, whole):
    for step in (0, 6, 7, 20, 34):
        with pytest.raises(Interrupted):
            tiny.fit(tiny.make_trainer(tmp_path, 5, SignalAt("on_before_backward", step)), tmp_path)
    tiny.assert_same_run(tmp_path, tiny.fit(tiny.make_trainer(tmp_path), tmp_path).state_dict(), whole)


def test_a_finished_run_can_go_on(tmp_path, whole):
    tiny.fit(tiny.make_trainer(tmp_path, 3), tmp_path)
    tiny.assert_same_run(tmp_path, tiny.fit(tiny.make_trainer(tmp_path, 5), tmp_path).state_dict(), whole)


@pytest.mark.parametrize("settings", [{"val_check_interval": 4}, {"accumulate_grad_batches": 3}, {"max_steps": 33}])
def test_with_other_settings_of_the_trainer(tmp_path, settings):
    a, b = tmp_path / "a", tmp_path / "b"
    expected = tiny.fit(tiny.make_trainer(a, **settings), a).state_dict()
    for hook in ("on_before_backward", "on_validation_batch_start"):
        with pytest.raises(Interrupted):
            tiny.fit(tiny.make_trainer(b, 5, SignalAt(hook, 7), every_seconds=0.0, **settings), b)
    tiny.assert_same_run(
        b, tiny.fit(tiny.make_trainer(b, **settings), b).state_dict(), (expected, tiny.reproducible(a), tiny.best(a))
    )


@pytest.mark.parametrize("stop", [6, 9, 10, 14])
def test_validations_every_so_many_steps_come_when_they_would_have(tmp_path, stop):
    settings = {"val_check_interval": 5, "check_val_every_n_epoch": None}
    a, b = tmp_path / "a", tmp_path / "b"
    expected = tiny.fit(tiny.make_trainer(a, 3, **settings), a).state_dict()
    for step in (stop, stop + 2):
        with pytest.raises(Interrupted):
            signal_at = SignalAt("on_before_backward", step)
            tiny.fit(tiny.make_trainer(b, 3, signal_at, every_seconds=0.0, **settings), b)
    tiny.assert_same_run(
        b, tiny.fit(tiny.make_trainer(b, 3, **settings), b).state_dict(), (expected, tiny.reproducible(a), tiny.best(a))
    )


class Spoils(Callback):
    """Makes all validations worse."""

    def on_validation_start(self, trainer, pl_module) -> None:
        torch.nn.init.constant_(list(pl_module.parameters())[-1], 1e3)


def test_a_run_that_was_moved_keeps_its_best_weights(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(Interrupted):
        tiny.fit(tiny.make_trainer(a, 5, SignalAt("on_before_backward", 13)), a)
    a.rename(b)
    tiny.fit(tiny.make_trainer(b, 5, Spoils()), b)
    assert read_checkpoint(b / "checkpoints" / "best.ckpt")["global_step"] == 10
