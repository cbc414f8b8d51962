"""What each process of a parallel run keeps for itself in the one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch


def of_all(trainer: pl.Trainer, state: Any) -> list[Any]:
    """The plain values of all processes, by rank; to be called on every process."""
    states = [state]
    if trainer.world_size > 1:
        states = [None] * trainer.world_size
        torch.distributed.all_gather_object(states, state)
    return states


def of_mine(trainer: pl.Trainer, states: Sequence[Any]) -> Any:
    """Those of this process; None where there were fewer."""
    return states[trainer.global_rank] if trainer.global_rank < len(states) else None
