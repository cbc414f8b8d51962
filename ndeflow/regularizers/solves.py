"""Penalties of each solve by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Output, Problem, Regularizer, Solved
from ndeflow.numerics.field import SDE


class SolvePenalty(Regularizer):
    """A sum over the regularized solves of a training step."""

    @abstractmethod
    def of(self, one: Solved) -> Tensor:
        """The penalty of one solve, a scalar."""

    @final
    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        if not solved:
            raise ValueError(
                f"expected a model that solves when it trains for {type(self).__name__}, got {type(model).__name__}; "
                "use regularizer=score_residual or log_density_residual with a model of a diffusion's score"
            )
        total, *others = [self.of(one) for one in solved]
        return sum(others, start=total)


def read_at_random(problem: Problem, count: int) -> Problem:
    """The problem read at `count` more times in order, uniform over its span: the same fractions of it in all rows."""
    start, end = problem.ts[..., :1], problem.ts[..., -1:]
    fractions = torch.rand(count, dtype=start.dtype, device=start.device).sort().values
    return problem.with_probes(start + fractions * (end - start))


def needs_derivative(problem: Problem, penalty: str) -> None:
    """Raise ValueError for an SDE."""
    if isinstance(problem.field, SDE):
        raise ValueError(
            f"expected an ODE or a CDE for {penalty}, got an SDE, whose paths have no derivative; use GlobalError "
            "with solver=adaptive_stochastic"
        )
