"""Ctrl-C and SIGTERM during training: stop at once, and leave a checkpoint that resumes exactly."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from ndeflow.training.saver import Saver
from ndeflow.training.signals import Interrupted, handle_signals


@final
class Interrupt(Callback):
    """Turns SIGINT and SIGTERM into `Interrupted`, raised out of `Trainer.fit`.

    In a forward or backward pass, and in validation, it is raised at once, also in the middle of a long solve; in
    between, and with several processes, where all of them can stop together: at the next batch. Then, and after a cut
    forward or backward pass, the state is saved; a cut validation leaves the checkpoint before it.
    Stands after `Saver` in the Trainer's list of callbacks.
    """

    def __init__(self, saver: Saver) -> None:
        self.saver = saver
        self.signum: int | None = None
        self._busy = False  # may an exception be raised anywhere?
        self._in_step = False  # is the state still that of the batch's start?

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: remember the signal, and raise where nothing is torn by it."""
        self.signum = signum
        if self._busy:
            self._busy = False
            raise Interrupted(signum)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        handle_signals(self.handle)  # the Trainer restores the handlers of before when it ends

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._agreed(trainer) and self.saver.at_boundary:
            self.saver.save(trainer)
            raise self._exception()
        self._in_step = True
        self._allow(trainer)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._busy = self._in_step = False

    def on_train_batch_end(self, *args: Any) -> None:
        self._busy = self._in_step = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            if self._agreed(trainer):
                raise self._exception()
            self._allow(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._busy = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agreed(trainer):
            raise self._exception()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        cut, self._busy, self._in_step = self._in_step, False, False
        if cut and isinstance(exception, Interrupted) and self.saver.unchanged(pl_module):
            self.saver.save(trainer)

    def _agreed(self, trainer: pl.Trainer) -> bool:
        """Whether any process got a signal; every process must ask."""
        return trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False)

    def _allow(self, trainer: pl.Trainer) -> None:
        """From here on a signal may raise at once, one that came a moment ago included."""
        if trainer.world_size == 1:
            self._busy = True
            if self.signum is not None:
                self._busy = False
                raise self._exception()

    def _exception(self) -> Interrupted:
        return Interrupted(self.signum or signal.SIGTERM)
