"""How many rows of an epoch failed, without reading a number off the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ndeflow.metrics import Reducer


@final
class Tally:
    """Failed rows and all rows of an epoch; as in a `Meter`, a step counts once it is committed."""

    def __init__(self) -> None:
        self._failed: Tensor | int = 0
        self._rows = 0
        self._pending: list[Tensor] = []

    def add(self, failed: Tensor) -> None:
        """Note the rows (B,) bool of the current step."""
        self._pending.append(failed)

    def commit(self) -> None:
        """Count what was added since the last call."""
        for failed in self._pending:
            self._failed = failed.sum() + self._failed
            self._rows += len(failed)
        self._pending = []

    def share(self, strategy: Reducer) -> float:
        """The share of the rows of all processes that failed; 0 where rows can not."""
        if not self._rows:
            return 0.0
        counts = torch.tensor([int(self._failed), self._rows], device=strategy.root_device)
        failed, rows = strategy.reduce(counts, reduce_op="sum").tolist()
        return failed / rows

    def state_dict(self) -> list[int]:
        """What was committed, as plain values."""
        return [int(self._failed), self._rows]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Go on from what another process has counted."""
        self._failed, self._rows = state
        self._pending = []
