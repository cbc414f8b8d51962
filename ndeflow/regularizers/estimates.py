"""What solvers estimate of their steps, as penalties use it: the error, or the stiffness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from torch import Tensor

from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.solution import Stats


class Estimate(ABC):
    """One of the two estimates that an adaptive solver makes of each step."""

    @abstractmethod
    def refuse(self, solver: Any, penalty: str) -> None:
        """Raise ValueError, with the cure, for a solver that does not make it; penalty: its name, for the message."""

    @abstractmethod
    def of(self, error: Tensor | None, stiffness: Tensor | None) -> Tensor:
        """This estimate, of the two."""

    @abstractmethod
    def norms(self, stats: Stats) -> Tensor:
        """Its norms over the rows of a solve whose rows step together, (N,)."""

    @abstractmethod
    def factor(self, size: Any, solver: Any) -> Any:
        """What it is multiplied by, of a step of some size: a number, or of many steps, tensors alike."""


@final
class ErrorEstimate(Estimate):
    """The tolerance-scaled RMS local error, times the size of its step."""

    def refuse(self, solver: Any, penalty: str) -> None:
        if not isinstance(solver, Adaptive):
            raise ValueError(
                f"expected a solver that estimates its local error, got {solver}; use an adaptive one (solver=dopri5, "
                f"tsit5, bosh3 or heun, of an SDE adaptive_stochastic) with {penalty}"
            )

    def of(self, error: Tensor | None, stiffness: Tensor | None) -> Tensor:
        assert error is not None
        return error

    def norms(self, stats: Stats) -> Tensor:
        assert stats.error_norms is not None
        return stats.error_norms

    def factor(self, size: Any, solver: Any) -> Any:
        return size


@final
class StiffnessEstimate(Estimate):
    """The stiffness as a share of the method's stability interval; step sizes do not enter."""

    def refuse(self, solver: Any, penalty: str) -> None:
        if not (isinstance(solver, Adaptive) and solver.stiffness):
            raise ValueError(
                f"expected a solver that estimates stiffness, got {solver}; use solver=dopri5 or tsit5, which have two "
                f"stages at the end of a step, or of an SDE adaptive_stochastic, with {penalty}"
            )

    def of(self, error: Tensor | None, stiffness: Tensor | None) -> Tensor:
        assert stiffness is not None
        return stiffness

    def norms(self, stats: Stats) -> Tensor:
        assert stats.stiffness_norms is not None
        return stats.stiffness_norms

    def factor(self, size: Any, solver: Any) -> Any:
        return 1 / solver.stability
