"""Random numbers of training as a function of where it stands: a resumed run draws what it would have drawn."""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from ndeflow.numerics.seeds import mix

_TRAIN, _EVALUATE = 0, 1


@final
class Reseed(Callback):
    """Seeds torch's default generators before each training batch and before each evaluation.

    A training batch's seed is a function of (seed, global step, batch, process); an evaluation's of (seed, process),
    so that evaluations of one run differ by the weights alone.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        _reseed(mix(self.seed, _TRAIN, trainer.global_step, batch_idx, trainer.global_rank), pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _reseed(mix(self.seed, _EVALUATE, trainer.global_rank), pl_module.device)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)


def _reseed(seed: int, device: torch.device) -> None:
    # The generators themselves: torch.manual_seed takes a hundred times as long.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
