"""What a run writes down while it trains: one row every so many steps, one after each validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from ndeflow.training.checkpoints import KEY
from ndeflow.training.meter import Meter, Metered
from ndeflow.training.ranks import of_all, of_mine
from ndeflow.training.stopwatch import Stopwatch


@final
class MeterLogging(Callback):
    """Sends the means of the task's `meter` to all loggers every `every` optimizer steps, at the global step.

    Added to what the task reports: train/learning_rate (of that step, first parameter group), epoch,
    time/seconds_per_step (all included but validation), time/seconds_outside (those of them outside forward pass,
    backward pass and optimizer step; on a GPU, outside launching them) and time/overhead (their share). After
    validation the metrics that begin with val/ follow. The meter's sums go into the checkpoint: the rows of a resumed
    run are those of an uninterrupted one, columns of time aside.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"expected every >= 1 steps between rows of metrics, got {every}")
        self.every = every
        self.latest: dict[str, float] = {}
        self.watch = Stopwatch()
        self._rate: Tensor | float = 0.0
        self._stepped = False
        self._epoch = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.start(trainer.optimizers if pl_module.automatic_optimization else ())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._rate = optimizer.param_groups[0]["lr"]
        self._stepped = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        meter_of(pl_module).commit()
        self._epoch = trainer.current_epoch
        if self._stepped:
            self._stepped = False
            self.watch.step()
            if trainer.global_step % self.every == 0:
                self._flush(trainer, meter_of(pl_module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
            self._send(trainer, metrics)
        self.watch.resume()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.watch.steps:
            self._flush(trainer, meter_of(pl_module))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.setdefault(KEY, {})["meters"] = of_all(trainer, meter_of(pl_module).state_dict())

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = of_mine(trainer, checkpoint.get(KEY, {}).get("meters", ()))
        if state is not None:
            meter_of(pl_module).load_state_dict(state)

    def _flush(self, trainer: pl.Trainer, meter: Meter) -> None:
        def reduce(values: Tensor, how: str) -> Tensor:
            return trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op=how)

        means = meter.flush(reduce if trainer.world_size > 1 else None)
        seconds, overhead = self.watch.lap()
        outside = overhead * seconds
        times = {"time/seconds_per_step": seconds, "time/seconds_outside": outside, "time/overhead": overhead}
        self._send(trainer, {**means, "train/learning_rate": float(self._rate), **times})

    def _send(self, trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
        self.latest |= metrics
        row = {"epoch": self._epoch, **metrics}
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), step=trainer.global_step)


def meter_of(module: pl.LightningModule) -> Meter:
    """The meter of a task."""
    return cast(Metered, module).meter
