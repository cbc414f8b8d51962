"""What a penalty needs of a solve, and the cure where that is not there."""

from __future__ import annotations

from typing import Any

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.field import SDE


def needs_error(solver: Any, penalty: str) -> None:
    """Raise ValueError unless the solver estimates its local error."""
    if not isinstance(solver, Adaptive):
        raise ValueError(
            f"expected a solver that estimates its local error, got {solver}; use an adaptive one (solver=dopri5, "
            f"tsit5, bosh3 or heun, of an SDE adaptive_stochastic) with {penalty}"
        )


def needs_stiffness(solver: Any, penalty: str) -> None:
    """Raise ValueError unless the solver estimates stiffness."""
    if not (isinstance(solver, Adaptive) and solver.stiffness):
        raise ValueError(
            f"expected a solver that estimates stiffness, got {solver}; use solver=dopri5 or tsit5, which have two "
            f"stages at the end of a step, or of an SDE adaptive_stochastic, with {penalty}"
        )


def needs_derivative(problem: Problem, penalty: str) -> None:
    """Raise ValueError for an SDE."""
    if isinstance(problem.field, SDE):
        raise ValueError(
            f"expected an ODE or a CDE for {penalty}, got an SDE, whose paths have no derivative; use GlobalError "
            "with solver=adaptive_stochastic"
        )
