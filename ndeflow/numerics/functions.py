"""What of a Runge-Kutta solve is compiled: its start, a step and a slope as functions of flat tensors, and products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ndeflow.numerics import replay
from ndeflow.numerics.system import InitialValue

Function = Callable[..., list[Tensor]]


class Holder(nn.Module):
    """A field and the integrands of a solve as one module, whose tensors can be replaced for the time of a call."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()

    def names(self) -> list[str]:
        """Of parameters and buffers, each once."""
        return [name for name, _ in (*self.named_parameters(), *self.named_buffers())]


@final
class Functions:
    """The functions of a solver on a leg.

    Each takes what it is about, then `fixed` tensors: those of the modules, then the leaves of the leg's context. A
    product takes behind them the cotangents, and totals, to which its part for each wanted tensor is added.

    leg: its tensors are replaced. modules: the field and the integrands. reached: which of their tensors are wanted.
    needs: whether each leaf is. tensors: how many the modules have.
    """

    def __init__(
        self,
        solver: Any,
        leg: InitialValue,
        modules: Sequence[nn.Module],
        reached: Sequence[int],
        needs: Sequence[bool],
        tensors: int,
    ) -> None:
        self.solver, self.leg, self.modules = solver, leg, modules
        self.reached, self.needs, self.tensors = set(reached), list(needs), tensors
        self.fixed = tensors + len(self.needs)

    def step(self, t: Tensor, h: Tensor, z: Tensor, carry: Tensor, *rest: Tensor) -> list[Tensor]:
        """[y, carry, ratio], stiffness where the method has it, mid where states are interpolated."""
        solver = self._tolerant(*rest[:2])
        step = self._bound(z, rest[2:], lambda leg: solver.advance(leg, t, z, h, carry))
        return [x for x in (step.y, step.carry, step.ratio, step.stiffness, step.mid) if x is not None]

    def start(self, start: Tensor, length: Tensor, moving: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """[dz/dt, the first step] at the start of the leg."""
        solver = self._tolerant(*rest[:2])

        def call(leg: Any) -> list[Tensor]:
            leg.start, leg.length, leg.moving = start, length, moving
            slope = leg.slope(z)
            return [slope, solver.start(leg, z, slope)]

        return self._bound(z, rest[2:], call)

    def slope(self, t: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """[dz/dt]."""
        return [self._bound(z, rest, lambda leg: leg(t.to(z.dtype.to_real()), z))]

    def slope_product(self, *flat: Tensor) -> list[Tensor]:
        """Of `slope`, from one cotangent: that of z, then the totals."""
        inputs, wants = self._inputs(flat, 2, (1,))
        with torch.enable_grad():
            outputs = self.slope(*inputs)
        cotangents, totals = flat[2 + self.fixed :][:1], flat[3 + self.fixed :]
        return self._added(replay.grads(outputs, inputs, cotangents), wants, [inputs[1]], totals)

    def step_products(self, *flat: Tensor) -> list[Tensor]:
        """What `step` gives; its product from the cotangents of y and carry; that from the cotangents of all.

        A product: the cotangents of z and carry before the step, then the totals.
        """
        inputs, wants = self._inputs(flat, 6, (2, 3))
        with torch.enable_grad():
            outputs = self.step(*inputs)
        late = flat[6 + self.fixed :]
        cotangents, totals = late[: len(outputs)], late[len(outputs) :]
        found = [x.detach() for x in outputs]
        for count in (2, len(outputs)):
            products = replay.grads(outputs[:count], inputs, cotangents[:count], retain_graph=True)
            found += self._added(products, wants, inputs[2:4], totals)
        return found

    def _inputs(self, flat: Sequence[Tensor], count: int, states: Sequence[int]) -> tuple[list[Tensor], list[bool]]:
        """The arguments of a function as leaves of a graph, and which of them get a gradient."""
        wants = [i in states for i in range(count)]
        wants += [i in self.reached for i in range(self.tensors)] + self.needs
        return [x.detach().requires_grad_(w) for x, w in zip(flat, wants, strict=False)], wants

    def _added(
        self,
        products: Sequence[Tensor | None],
        wants: Sequence[bool],
        states: Sequence[Tensor],
        totals: Sequence[Tensor],
    ) -> list[Tensor]:
        found = [g for g, w in zip(products, wants, strict=True) if w]
        before = [torch.zeros_like(z) if g is None else g for z, g in zip(states, found, strict=False)]
        return [*before, *map(_sum, totals, found[len(states) :])]

    def _tolerant(self, rtol: Tensor, atol: Tensor) -> Any:
        solver = copy.copy(self.solver)
        object.__setattr__(solver, "rtol", rtol)
        object.__setattr__(solver, "atol", atol)
        return solver

    def _bound(self, z: Tensor, rest: Sequence[Tensor], call: Callable[[Any], Any]) -> Any:
        """A call with the leg reading other tensors: of the modules and of the context."""
        leg = self.leg.with_conditions(rest[self.tensors : self.fixed])
        leg.rows = z.shape[0]
        named = dict(zip(self._names, rest[: self.tensors], strict=True))
        return functional_call(self._holder, named, (lambda: call(leg),))

    @cached_property
    def _holder(self) -> Holder:
        return Holder(self.modules)

    @cached_property
    def _names(self) -> list[str]:
        return self._holder.names()


def _sum(total: Tensor, part: Tensor | None) -> Tensor:
    return total.clone() if part is None else total + part  # never the total itself, which others may hold
