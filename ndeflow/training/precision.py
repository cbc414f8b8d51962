"""What the Trainer's precision does to a module and to its steps, outside a training."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import Precision

from ndeflow.training.silence import silence


def precision(name: str) -> Precision:
    """That of a Trainer on the CPU: converts modules, and gives the context of a training step."""
    silence()
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision=name,  # pyright: ignore[reportArgumentType]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).precision_plugin
