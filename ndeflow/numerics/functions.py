"""What of a solve is compiled: its start, a step and its carry as functions of flat tensors, and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ndeflow.numerics import replay
from ndeflow.numerics.form import Form, Heads
from ndeflow.numerics.packing import Line
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.tree import node_normals


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
    product takes behind them the cotangents, and totals, to which its part for each wanted tensor is added: those of
    the modules, in line, then those of leaves.

    form: of the solver's steps. leg: its tensors are replaced. modules: the field and the integrands. reached: which of
    their tensors are wanted. line: how the totals of these are handed over. needs: whether each leaf is wanted.
    tensors: how many the modules have.
    """

    def __init__(
        self,
        form: Form,
        leg: InitialValue,
        modules: Sequence[nn.Module],
        reached: Sequence[int],
        line: Line,
        needs: Sequence[bool],
        tensors: int,
    ) -> None:
        self.form, self.leg, self.modules = form, leg, modules
        self.reached, self.line, self.needs, self.tensors = set(reached), line, list(needs), tensors
        self.fixed = tensors + len(self.needs)

    def step(self, *flat: Tensor) -> list[Tensor]:
        """What a step of the form gives."""
        about, rest = flat[: self.form.about], flat[self.form.about :]
        return self._bound(about[2], rest, lambda leg: self.form.step(leg, *about))

    def undo(self, *flat: Tensor) -> list[Tensor]:
        """z and the carry before a step, from those after it."""
        about, rest = flat[: self.form.about], flat[self.form.about :]
        return self._bound(about[2], rest, lambda leg: self.form.undo(leg, *about))

    def start(self, start: Tensor, length: Tensor, moving: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """[dz/dt, the first step] of an adaptive solver at the start of the leg."""
        form: Any = self.form
        solver = form.tolerant(*rest[:2])

        def call(leg: Any) -> list[Tensor]:
            leg.start, leg.length, leg.moving = start, length, moving
            slope = leg.slope(z)
            return [slope, solver.start(leg, z, slope)]

        return self._bound(z, rest[2:], call)

    def normals(
        self, word: Tensor, place: Tensor, low: Tensor, high: Tensor, index: Tensor, *fixed: Tensor
    ) -> list[Tensor]:
        """The normals of a node: see `node_normals`."""
        size, dtype = self.leg.problem.field.noise_size, self.leg.problem.y0.dtype
        return list(node_normals((low, high), index, word, place, size, dtype))

    def begin(self, t: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """The carry of a first step."""
        return self._bound(z, rest, lambda leg: self.form.begin(leg, t, z))

    def begin_product(self, *flat: Tensor) -> list[Tensor]:
        """Of `begin`, from a cotangent of z, to which its part is added, and of each result: that of z, the totals."""
        inputs, wants = self._inputs(flat, 2, (1,))
        with torch.enable_grad():
            outputs = self.begin(*inputs)
        end, *late = flat[2 + self.fixed :]
        cotangents, totals = late[: len(outputs)], late[len(outputs) :]
        before, *totals = self._added(replay.grads(outputs, inputs, cotangents), wants, [inputs[1]], totals)
        return [end + before, *totals]

    def step_products(self, *flat: Tensor) -> list[Tensor]:
        """What `step` gives, then its product from each of the form's `heads`.

        A product: the cotangents of z and carry before the step, then the totals.
        """
        return self._products(flat, self.form.heads(self.leg.dense))

    def step_product(self, head: int, *flat: Tensor) -> list[Tensor]:
        """The product from one of the form's `heads` alone."""
        heads, outputs = self.form.heads(self.leg.dense), self.form.outputs(self.leg.dense)
        return self._products(flat, heads[head : head + 1])[outputs:]

    def _products(self, flat: Sequence[Tensor], heads: Heads) -> list[Tensor]:
        """What `step` gives, then some products."""
        inputs, wants = self._inputs(flat, self.form.about, self.form.states)
        with torch.enable_grad():
            outputs = self.step(*inputs)
        late, inside = flat[self.form.about + self.fixed :], self.form.heads(self.leg.dense)[-1]
        cotangents, totals, ends = late[: len(outputs)], late[len(outputs) :], len(outputs) - len(inside)
        found, states = [x.detach() for x in outputs], [inputs[i] for i in self.form.states]
        for head in heads:
            asked = [*range(ends), *(ends + inside.index(place) for place in head)]
            chosen = [outputs[i] for i in asked], inputs, [cotangents[i] for i in asked]
            found += self._added(replay.grads(*chosen, retain_graph=True), wants, states, totals)
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
        totals = [*self.line.unpack(totals[: self.line.count]), *totals[self.line.count :]]
        sums = [*map(_sum, totals, found[len(states) :])]
        return [*before, *self.line.pack(sums[: len(self.reached)]), *sums[len(self.reached) :]]

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
