"""Keeps with a run what its fields have cost, so that each is compiled from the same step on however often it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn

from ndeflow.models.base import Model
from ndeflow.numerics.accounts import account, known
from ndeflow.training.checkpoints import KEY
from ndeflow.training.ranks import of_all, of_mine
from ndeflow.training.recording import meter_of
from ndeflow.training.stopwatch import Stopwatch

SWITCH = "train/compiled_from_step"

State = dict[str, dict[str, Any]]


@final
class Switching(Callback):
    """Puts the accounts of a task's fields into checkpoints, and takes them up again before the first solve.

    A checkpoint of a batch that was cut holds the accounts of its start. steps: field -> the global step from which on
    it is compiled; from there on the table has the column train/compiled, 1. Seconds of compiling are not counted as
    training by `watch`. Of several processes each keeps its own accounts and switches by them: they may compile at
    different steps, which changes gradients by rounding only. Stands before `MeterLogging` and `Saver`.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.steps: dict[str, int] = {}
        self._fields: dict[str, nn.Module] = {}
        self._step, self._seconds = 0, 0.0
        self._before: State | None = None  # the accounts at the start of the batch in work

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fields = dict(candidates(pl_module))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step, self._before, self._seconds = trainer.global_step, self._accounts(), self._spent()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._before = None
        self.watch.leave_out(self._spent() - self._seconds)
        for name, field in self._fields.items():
            found = known(field)
            if found is not None and found.compiled:
                self.steps.setdefault(name, self._step)
        if self.steps:
            meter_of(pl_module).add({"train/compiled": 1.0})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        accounts = self._accounts() if self._before is None else self._before
        state = {"accounts": accounts, "steps": dict(self.steps)}
        checkpoint.setdefault(KEY, {})["fields"] = of_all(trainer, state)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = of_mine(trainer, checkpoint.get(KEY, {}).get("fields", ()))
        if state is not None:
            self.steps = dict(state["steps"])
            for name, field in candidates(pl_module):
                if name in state["accounts"]:
                    account(field).load_state_dict(state["accounts"][name])

    def results(self) -> dict[str, float]:
        """The first step at which a field was compiled, for results.json; nothing where none was."""
        return {SWITCH: float(min(self.steps.values()))} if self.steps else {}

    def _accounts(self) -> State:
        found = ((name, known(field)) for name, field in self._fields.items())
        return {name: mine.state_dict() for name, mine in found if mine is not None}

    def _spent(self) -> float:
        """Seconds of compiling so far."""
        found = (known(field) for field in self._fields.values())
        return sum(mine.seconds for mine in found if mine is not None)


def candidates(task: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a task that may be solved, by name: its parts, and dynamics of models that are none of them."""
    parts = set(task.modules())
    for name, module in task.named_modules():
        yield name, module
        if isinstance(module, Model) and module.dynamics not in parts:
            yield f"{name}.dynamics", module.dynamics
