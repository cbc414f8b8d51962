"""JAX on the same equation: a scan, and diffrax."""

from __future__ import annotations

from itertools import count
from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]
import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import lineax  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarking.jax_system import JaxSystem, mlp
from benchmarking.sde.problem import METHODS, SDEProblem


class JaxSDE(JaxSystem[SDEProblem]):
    """The field evaluated is the drift. Every call has another seed; the noise is the system's own."""

    def __init__(self, problem: SDEProblem) -> None:
        field = problem.field
        super().__init__(problem, [(each.first, each.last) for each in (field.drifting, field.spreading)])
        self.seeds = count()

    def inputs(self) -> Any:
        return self.y0, np.uint32(next(self.seeds))

    def field(self, t: Any, y: Any, weights: Any) -> Any:
        return mlp(y, weights[0])

    def result(self) -> None:
        return None


class Scan(JaxSDE):
    """A scan over steps as one writes them by hand; the noise is drawn before it, in the same jitted call.

    By XLA's own generator: JAX's default takes longer.
    """

    def solve(self, weights: Any, inputs: Any, field: Any) -> Any:
        case, dt, (y0, seed) = self.problem.case, self.problem.dt, inputs
        noise = jax.random.normal(jax.random.key(seed, impl="rbg"), (case.steps, *y0.shape)) * dt**0.5

        def step(y: Any, dw: Any) -> Any:
            after = METHODS[case.method](lambda y: field(0.0, y, weights), lambda y: spread(y, weights), y, dt, dw)
            return after, None

        return jnp.stack([y0, jax.lax.scan(step, y0, noise)[0]])


class Diffrax(JaxSDE):
    """diffrax's Euler-Maruyama with recursive checkpoints and its virtual Brownian tree, resolved to half a step."""

    def solve(self, weights: Any, inputs: Any, field: Any) -> Any:
        case, (y0, seed) = self.problem.case, inputs
        key = jax.random.key(seed)
        motion = diffrax.VirtualBrownianTree(0.0, case.end, tol=self.problem.dt / 2, shape=y0.shape, key=key)
        diffusion = diffrax.ControlTerm(lambda t, y, w: lineax.DiagonalLinearOperator(spread(y, w)), motion)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(field), diffusion),
            diffrax.Euler(),
            t0=0.0,
            t1=case.end,
            dt0=None,
            y0=y0,
            args=weights,
            saveat=diffrax.SaveAt(t0=True, t1=True),
            stepsize_controller=diffrax.StepTo(ts=jnp.linspace(0.0, case.end, case.steps + 1)),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )
        return solution.ys


def spread(y: Any, weights: Any) -> Any:
    """The diffusion, (B, dim) -> (B, dim)."""
    return jax.nn.sigmoid(mlp(y, weights[1]))
