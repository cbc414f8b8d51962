"""One more step of a march, whatever its error, with its estimates on the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.form import NOTHING, RATIO_NORM, STIFFNESS_NORM
from ndeflow.numerics.solution import Solution, Step
from ndeflow.numerics.stepper import Eager
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.engine import Engine, Kept

Norms = tuple[Tensor | None, Tensor | None]


def norms(solution: Solution, number: int, fraction: float = 0.0, noise: Tensor | None = None) -> Norms:
    """Norms over the rows, 0-dim, of scaled error and stiffness of a step of the state alone; None: no estimate.

    From a fraction of accepted step `number` on, and as long as it: time, state and size are constants, the first slope
    is not. The state is where a step of that fraction comes to; with noise, it is interpolated linearly. Where the
    march was compiled so is this, by the same programs. noise: as `Adaptive.advance` takes it. The rows of the solution
    step together, and its mesh was kept.
    """
    stats, solver = solution.stats, solution.solver
    assert stats.trail is not None and isinstance(solver, Adaptive)
    system, node = stats.trail.system, stats.trail.nodes[number]
    compiled = system.compiled and not system.integrands
    if not compiled:
        system = system.alone()
    stepper: Any = system.engine if compiled else Eager(solver)
    leg = system.at(node.segment)
    t, h = leg.moment(node.theta + fraction * node.dtheta, node.dtheta)
    with torch.no_grad(), replay.Ambient.of(solution.problem.y0)():
        z = system.join(stats.trail.state(number), None)
        if fraction and noise is not None:
            z = torch.lerp(z, system.join(stats.trail.state(number + 1), None), fraction)
        elif fraction:
            start, size = leg.moment(node.theta, fraction * node.dtheta)
            z = stepper.step(leg, start, z, size, node.carry).y if compiled else solver.reach(leg, start, z, size)
    if not compiled:
        return _norms(stepper.step(leg, t, z, h, None, noise))
    one = Alone(solver, stepper, leg, t.detach(), z, h.detach(), noise)
    if fraction or noise is not None:
        one.take()
    else:
        error, stiffness = (x if x is None else x.detach()[number] for x in (stats.error_norms, stats.stiffness_norms))
        one.found, one.carry, one.kept = (error, stiffness), node.carry, stats.trail.kept[number]
    return Taken.apply(one, *leg.conditions(), *stepper.parameters)


def _norms(step: Step) -> Norms:
    _, error, _, stiffness = step.estimates
    return error, stiffness


@final
@dataclass
class Alone:
    """A compiled step from a constant start: t, z and h. found: its norms, once it is taken."""

    solver: Adaptive
    engine: Engine
    leg: InitialValue
    t: Tensor
    z: Tensor
    h: Tensor
    noise: Tensor | None
    carry: Any = None
    kept: Kept | None = None
    found: Norms = (None, None)

    def take(self) -> None:
        """Take the step."""
        leg, engine = self.leg, self.engine
        leg.start = self.t
        with torch.no_grad():
            self.carry = engine.begin(leg, self.z, None)
            step = engine.step(leg, self.t, self.z, self.h, self.carry, self.noise)
        self.found, self.kept = _norms(step), step.kept

    def again(self, leaves: list[Tensor]) -> Norms:
        """The norms on the graph of the modules' parameters and other leaves of the context."""
        leg = self.leg.with_conditions(leaves)
        return _norms(Eager(self.solver).step(leg, self.t, self.z, self.h, None, self.noise))

    def pull(self, cotangents: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The vector-Jacobian product: for the leaves, then the parameters."""
        engine, leg = self.engine, self.leg
        kept = self.kept or engine.take(leg, self.t, self.h, self.z, self.carry, self.noise)
        inner = list[Tensor | None](NOTHING)
        inner[RATIO_NORM], inner[STIFFNESS_NORM] = cotangents
        ends, totals = engine.pull(leg, kept, [None], inner, engine.zeros(leg))
        if len(ends) > 1:
            _, totals = engine.pull_begin(leg, self.t, self.z, ends, totals)
        own = iter(totals[engine.entry.line.count :])
        leaves = [next(own) if x.requires_grad else None for x in leg.conditions()]
        return [*leaves, *engine.gradients(totals)]


class Taken(torch.autograd.Function):
    """(*leaves, *parameters) -> the norms of a compiled step."""

    @staticmethod
    def forward(ctx: Any, one: Alone, *inputs: Tensor) -> Norms:
        ctx.one = one
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        error, stiffness = (x if x is None else x.detach() for x in one.found)  # not what `one` keeps: that is a cycle
        return error, stiffness

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        one, inputs = ctx.one, list(ctx.saved_tensors)
        if not torch.is_grad_enabled():
            return None, *one.pull(cotangents)
        found = one.again(inputs[: len(inputs) - len(one.engine.parameters)])
        return None, *replay.grads(found, inputs, cotangents, create_graph=True)
