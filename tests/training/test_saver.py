"""When the best weights reach the disk, and that they are those of the best validation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from ndeflow.training.checkpoints import read_checkpoint
from tests.training import tiny_training as tiny


def best_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "best.ckpt"


class Observed(Callback):
    """Whether best.ckpt is there at the end of each epoch, and the weights at each validation."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self.there, self.weights = best_of(run_dir), list[bool](), list[dict]()

    def on_validation_end(self, trainer, pl_module) -> None:
        weights = {name: x.clone() for name, x in pl_module.state_dict().items()}
        self.weights.append({"score": trainer.callback_metrics["val/loss"].item(), "weights": weights})

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.there.append(self.path.exists())


@pytest.mark.parametrize(("every", "there"), [(3600.0, [False, False, False]), (0.0, [False, True, True])])
def test_they_wait_for_the_next_whole_checkpoint(tmp_path, every, there):
    observed = Observed(tmp_path)
    tiny.fit(tiny.make_trainer(tmp_path, 3, observed, every_seconds=every), tmp_path)
    assert observed.there == there
    best = min(observed.weights, key=lambda x: x["score"])["weights"]
    found = tiny.best(tmp_path)
    assert found.keys() == best.keys() and all(torch.equal(found[name], best[name]) for name in best)


class Diverges(Callback):
    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step == 13:
            raise FloatingPointError("diverged")


def test_a_run_that_fails_leaves_them(tmp_path):
    with pytest.raises(FloatingPointError):
        tiny.fit(tiny.make_trainer(tmp_path, 3, Diverges()), tmp_path)
    assert read_checkpoint(best_of(tmp_path))["global_step"] == 10


def test_a_disk_that_refuses_them_does_not_hide_why_a_run_failed(tmp_path, monkeypatch, caplog):
    class FullThen(Diverges):
        def on_train_batch_start(self, trainer, *args) -> None:
            if trainer.global_step == 13:
                monkeypatch.setattr("ndeflow.training.saver.write_checkpoint", full)
            super().on_train_batch_start(trainer, *args)

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FloatingPointError):
        tiny.fit(tiny.make_trainer(tmp_path, 3, FullThen()), tmp_path)
    assert "the best weights could not be written" in caplog.text and not best_of(tmp_path).exists()


def test_weights_that_others_save_do_not_wait(tmp_path):
    trainer = tiny.make_trainer(tmp_path, 1)
    tiny.fit(trainer, tmp_path)
    trainer.save_checkpoint(tmp_path / "final.ckpt", weights_only=True)
    assert read_checkpoint(tmp_path / "final.ckpt")["global_step"] == 10


def test_loggers_are_told_when_the_file_is_there(tmp_path):
    class Told(DummyLogger):
        there: list[bool] = []

        def after_save_checkpoint(self, checkpoint_callback) -> None:
            self.there.append(Path(checkpoint_callback.best_model_path).exists())

    trainer = tiny.make_trainer(tmp_path, 2)
    trainer.loggers = [*trainer.loggers, Told()]
    tiny.fit(trainer, tmp_path)
    assert Told.there and all(Told.there)


def test_without_a_validation_the_last_weights_are_kept(tmp_path):
    """Also where a first part without any left its own before."""
    for epochs in (1, 2):
        task = tiny.fit(tiny.make_trainer(tmp_path, epochs, limit_val_batches=0), tmp_path)
        assert read_checkpoint(best_of(tmp_path))["global_step"] == 10 * epochs
    tiny.assert_equal(tiny.best(tmp_path), task.state_dict())
