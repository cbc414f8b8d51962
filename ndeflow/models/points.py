"""Classifiers of vectors that are seen once: the vector is the initial state."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from ndeflow.contracts import Batch, Output
from ndeflow.fields.timed import TimedField
from ndeflow.models.base import Model
from ndeflow.models.trajectory import first_seen
from ndeflow.numerics.solution import Adjoint, Solver


@final
class PointClassifier(Model):
    """logits = readout(z(1)), dz/dt = f(t, z) with z(0) the vector itself; prediction (B, outputs).

    Of a series each channel's first seen value counts. The classifier of Pal, Ma, Shah, Rackauckas 2021, "Opening the
    Blackbox", section 4.1.1, whose cost is that of the solve alone. channels: length of the vector. outputs: classes,
    or numbers to regress.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int = 64,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        self.flow = TimedField(channels, width=width)
        self.readout = nn.Linear(channels, outputs)

    @property
    def dynamics(self) -> nn.Module:
        return self.flow

    def forward(self, batch: Batch) -> Output:
        z0 = first_seen(batch)
        solution = self.solve(z0, torch.tensor([0.0, 1.0], dtype=z0.dtype, device=z0.device))
        return Output(self.readout(solution.ys[:, -1]), (solution,))
