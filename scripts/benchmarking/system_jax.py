"""diffrax on the same problem, jitted."""

from __future__ import annotations

from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]
import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from benchmarking.problems import TOLERANCE, Problem, Result, flat
from benchmarking.system import Cost, System

jax.config.update("jax_default_matmul_precision", "highest")  # as torch's default


class Diffrax(System):
    """diffrax with its default controller and adjoint: integral control, recursive checkpoints.

    The whole batch is one state, so that it shares its steps. Raises ImportError where JAX lacks the device.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.device = device_of(problem)
        layers = (problem.field.first, problem.field.second, problem.field.last)
        self.weights = [(self._array(layer.weight), self._array(layer.bias)) for layer in layers]
        self.y0, self.ts = self._array(problem.y0), self._array(problem.ts)
        self.run = jax.jit(jax.value_and_grad(self._loss, has_aux=True) if problem.case.train else self._loss)

    def call(self) -> None:
        jax.block_until_ready(self.run(self.weights, self.y0))

    def cost(self) -> Cost:
        """Counted by a callback of the field."""
        calls: list[None] = []

        def counted(t: Any, y: Any, weights: Any) -> Any:
            jax.debug.callback(lambda: calls.append(None))
            return mlp(t, y, weights)

        jax.block_until_ready(jax.jit(lambda weights, y0: self._solve(weights, y0, counted))(self.weights, self.y0))
        jax.effects_barrier()
        return Cost(len(calls))

    def result(self) -> Result:
        out: Any = self.run(self.weights, self.y0)
        if not self.problem.case.train:
            return Result(tensor(out[1][-1]), None)
        (_, ys), gradient = out
        return Result(tensor(ys[-1]), flat(tensor(x) for layer in gradient for x in layer))

    def kept(self) -> int:
        """The residuals of `jax.vjp`, less the inputs among them, and the solution."""
        _, backward, ys = jax.vjp(jax.jit(lambda w: self._loss(w, self.y0)), self.weights, has_aux=True)
        inputs = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((self.weights, self.y0, self.ts))}
        found = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.tree.leaves((backward, ys)) if hasattr(x, "nbytes")}
        return sum(size for place, size in found.items() if place not in inputs)

    def _loss(self, weights: Any, y0: Any) -> tuple[Any, Any]:
        ys = self._solve(weights, y0, mlp)
        return jnp.square(ys).mean(), ys

    def _solve(self, weights: Any, y0: Any, field: Any) -> Any:
        saves = diffrax.SaveAt(t0=True, t1=True) if len(self.ts) == 2 else diffrax.SaveAt(ts=self.ts)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=y0,
            args=weights,
            saveat=saves,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )
        return solution.ys

    def _array(self, x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), self.device)


def device_of(problem: Problem) -> Any:
    """JAX's name for the problem's device."""
    try:
        return jax.devices("gpu" if problem.device.type == "cuda" else "cpu")[0]
    except RuntimeError as error:
        raise ImportError(f"JAX without {problem.device.type}") from error


def mlp(t: Any, y: Any, weights: Any) -> Any:
    """The field: (B, dim) -> (B, dim)."""
    *hidden, (w, b) = weights
    for weight, bias in hidden:
        y = jnp.tanh(y @ weight.T + bias)
    return y @ w.T + b


def tensor(x: Any) -> Tensor:
    return torch.from_numpy(jax.device_get(x).copy()).double()
