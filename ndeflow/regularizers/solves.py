"""Penalties of each solve by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from ndeflow.contracts import Output, Regularizer, Solved


class SolvePenalty(Regularizer):
    """A sum over the regularized solves of a training step."""

    @abstractmethod
    def of(self, one: Solved) -> Tensor:
        """The penalty of one solve, a scalar."""

    @final
    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        total, *others = [self.of(one) for one in solved]
        return sum(others, start=total)
