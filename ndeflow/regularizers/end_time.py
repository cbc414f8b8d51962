"""Random end times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Output, Problem, Regularizer, Solved
from ndeflow.numerics.field import path_of


@final
class EndTimeJitter(Regularizer):
    """A random end of the solve, one draw a training step (STEER); evaluation ends at t1 exactly.

    T = t1 + u b, u ~ U(-1, 1), b = width (t1 - t0). Ghosh, Behl, Dupont, Torr, Namboodiri 2020, eq. 4. Only for
    solves between two times: a target at an interior time would lose its meaning. It has no penalty of its own.

    width: b over the length of the solve, in (0, 1).
    """

    def __init__(self, width: float = 0.5) -> None:
        super().__init__(weight=1.0)
        if not 0 < width < 1:
            raise ValueError(f"expected width in (0, 1), got {width}")
        self.width = width

    def prepare(self, problem: Problem) -> Problem:
        if problem.ts.shape[-1] != 2:
            raise ValueError(
                f"expected a solve between two times, got {problem.ts.shape[-1]} save times, whose targets would "
                "move; use EndTimeJitter only where the model reads the final state"
            )
        if path_of(problem.context) is not None:
            raise ValueError(
                "expected a solve without a control path, whose observations end at its last knot; "
                "use EndTimeJitter with models that solve freely from an encoded state"
            )
        start, end = problem.ts[..., :1], problem.ts[..., 1:]
        jitter = self.width * (2 * torch.rand((), dtype=problem.ts.dtype, device=problem.ts.device) - 1)
        return replace(problem, ts=torch.cat([start, end + jitter * (end - start)], dim=-1))

    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        return output.prediction.new_zeros(())
