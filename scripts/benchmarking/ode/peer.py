"""diffrax on the same problem."""

from __future__ import annotations

from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]

from benchmarking.jax_system import JaxSystem, mlp
from benchmarking.ode.problem import TOLERANCE, ODEProblem


class Diffrax(JaxSystem[ODEProblem]):
    """diffrax with its default controller and adjoint: integral control, recursive checkpoints.

    The whole batch is one state, so that it shares its steps.
    """

    def __init__(self, problem: ODEProblem) -> None:
        super().__init__(problem, [(problem.field.first, problem.field.second, problem.field.last)])

    def inputs(self) -> Any:
        return self.y0

    def field(self, t: Any, y: Any, weights: Any) -> Any:
        return mlp(y, weights[0])

    def solve(self, weights: Any, inputs: Any, field: Any) -> Any:
        saves = diffrax.SaveAt(t0=True, t1=True) if len(self.ts) == 2 else diffrax.SaveAt(ts=self.ts)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=inputs,
            args=weights,
            saveat=saves,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )
        return solution.ys
