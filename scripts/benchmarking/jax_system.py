"""Systems on JAX, jitted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn

from benchmarking.problem import Problem, Result, flat
from benchmarking.system import Cost, P, System

jax.config.update("jax_default_matmul_precision", "highest")  # as torch's default


class JaxSystem(System[P]):
    """A solve as a function of weights and inputs. Raises ImportError where JAX lacks the device.

    weights: of each MLP, of each layer, weight and bias, in the order of the field's parameters.
    """

    def __init__(self, problem: P, mlps: Sequence[Sequence[nn.Linear]]) -> None:
        super().__init__(problem)
        self.device = device_of(problem)
        self.weights = [[(self.array(layer.weight), self.array(layer.bias)) for layer in mlp] for mlp in mlps]
        self.y0, self.ts = self.array(problem.y0), self.array(problem.ts)
        self.run = jax.jit(jax.value_and_grad(self._loss, has_aux=True) if problem.case.train else self._loss)

    @abstractmethod
    def inputs(self) -> Any:
        """Of the next call: arrays."""

    @abstractmethod
    def field(self, t: Any, y: Any, weights: Any) -> Any:
        """One evaluation."""

    @abstractmethod
    def solve(self, weights: Any, inputs: Any, field: Any) -> Any:
        """The states at all save times, (T, B, dim)."""

    def call(self) -> None:
        jax.block_until_ready(self.run(self.weights, self.inputs()))

    def cost(self) -> Cost:
        """Counted by a callback of the field."""
        calls: list[None] = []

        def counted(t: Any, y: Any, weights: Any) -> Any:
            jax.debug.callback(lambda: calls.append(None))
            return self.field(t, y, weights)

        solve = jax.jit(lambda weights, inputs: self.solve(weights, inputs, counted))
        jax.block_until_ready(solve(self.weights, self.inputs()))
        jax.effects_barrier()
        return Cost(len(calls))

    def result(self) -> Result | None:
        out: Any = self.run(self.weights, self.inputs())
        if not self.problem.case.train:
            return Result(tensor(out[1][-1]), None)
        (_, ys), gradient = out
        return Result(tensor(ys[-1]), flat(tensor(x) for x in jax.tree.leaves(gradient)))

    def kept(self) -> int:
        """The residuals of `jax.vjp`, less the inputs among them, and the solution."""
        given = jax.device_put(self.inputs(), self.device)
        _, backward, ys = jax.vjp(jax.jit(lambda w: self._loss(w, given)), self.weights, has_aux=True)
        inputs = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((self.weights, self.y0, self.ts, given))}
        found = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.tree.leaves((backward, ys)) if hasattr(x, "nbytes")}
        return sum(size for place, size in found.items() if place not in inputs)

    def array(self, x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), self.device)

    def _loss(self, weights: Any, inputs: Any) -> tuple[Any, Any]:
        ys = self.solve(weights, inputs, self.field)
        return jnp.square(ys).mean(), ys


def device_of(problem: Problem[Any]) -> Any:
    """JAX's name for the problem's device."""
    try:
        return jax.devices("gpu" if problem.device.type == "cuda" else "cpu")[0]
    except RuntimeError as error:
        raise ImportError(f"JAX without {problem.device.type}") from error


def mlp(y: Any, weights: Any) -> Any:
    """tanh between the layers: (B, inputs) -> (B, outputs)."""
    *hidden, (w, b) = weights
    for weight, bias in hidden:
        y = jnp.tanh(y @ weight.T + bias)
    return y @ w.T + b


def tensor(x: Any) -> Tensor:
    return torch.from_numpy(jax.device_get(x).copy()).double()
