"""diffrax on the same equation."""

from __future__ import annotations

from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarking.cde.problem import TOLERANCE, CDEProblem
from benchmarking.jax_system import JaxSystem, mlp


class Diffrax(JaxSystem[CDEProblem]):
    """diffrax with one of its adjoints; the whole batch is one state.

    rk4: in steps from knot to knot. dopri5: with its default controller, integral control. jumps: it is told the knots,
    that steps end there.
    """

    def __init__(self, problem: CDEProblem, adjoint: str, jumps: bool = False) -> None:
        self.adjoint, self.jumps = ADJOINTS[adjoint], jumps
        super().__init__(problem, [(problem.field.mlp.first, problem.field.mlp.last)])
        knots, xs = self.array(problem.knots), self.array(problem.xs.transpose(0, 1))
        self.path = diffrax.CubicInterpolation(knots, diffrax.backward_hermite_coefficients(knots, xs))

    def inputs(self) -> Any:
        return self.y0

    def field(self, t: Any, y: Any, weights: Any) -> Any:
        case = self.problem.case
        return jnp.tanh(mlp(y, weights[0])).reshape(-1, case.hidden, case.channels)

    def solve(self, weights: Any, inputs: Any, field: Any) -> Any:
        case = self.problem.case
        solver, controller, first = SOLVERS[case.method]
        if self.jumps:
            controller = diffrax.ClipStepSizeController(controller, step_ts=self.path.ts)

        def along(t: Any, y: Any, weights: Any) -> Any:
            return jnp.einsum("bhc,bc->bh", field(t, y, weights), self.path.derivative(t))

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(along),
            solver,
            t0=0.0,
            t1=case.length - 1.0,
            dt0=first,
            y0=inputs,
            args=weights,
            saveat=diffrax.SaveAt(t0=True, t1=True),
            stepsize_controller=controller,
            adjoint=self.adjoint,
        )
        return solution.ys


class RK4(diffrax.AbstractERK):
    """The classical method, which diffrax leaves to its users; the error estimate is not used."""

    tableau = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        b_error=np.array([0.0, 0.0, 0.0, 0.0]),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 4


SOLVERS: dict[str, Any] = {  # with controller and first step
    "rk4": (RK4(), diffrax.ConstantStepSize(), 1.0),
    "dopri5": (diffrax.Dopri5(), diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE), None),
}
ADJOINTS = {"checkpointed": diffrax.RecursiveCheckpointAdjoint(), "backsolve": diffrax.BacksolveAdjoint()}
