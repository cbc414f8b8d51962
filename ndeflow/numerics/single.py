"""One step by itself, whatever its error, with its estimates on the graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.adjoint import Replay
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.tape import Tape
from ndeflow.numerics.trace import Node, Trace

Estimates = tuple[Tensor | None, Tensor | None]


def estimates(
    solver: Adaptive, problem: Problem, t: Tensor, y: Tensor, h: Tensor, noise: Tensor | None = None
) -> Estimates:
    """Scaled error and stiffness (B,) of a step of the state alone from (t, y), as `Solver.step`; None: no estimate.

    Where solves of the problem are compiled, so is the step, by the same programs. t, h: (B,), equal where the rows of
    `problem` share their times. noise: as `Adaptive.advance` takes it.
    """
    if not solver.apart and not problem.integrands:
        system = _over(solver, problem, t, y, h)
        marched = solver.engage(system, replay.records(system.problem), keeping=True)
        if system.compiled:
            return _compiled(solver, marched, system, noise)
    column = [x.view(-1, *[1] * (y.dim() - 1)) for x in (t, h)]
    step = solver.step(problem, column[0], y, column[1], noise=noise)
    return step.ratio, step.stiffness


def _over(solver: Adaptive, problem: Problem, t: Tensor, y: Tensor, h: Tensor) -> InitialValue:
    """The problem from t to t + h alone, as a march of one step; its programs are those of the whole."""
    ends = torch.stack([t, t + h], dim=-1)
    ts = ends if problem.ts.dim() == 2 else ends[0]
    system = solver.system(replace(problem, y0=y, ts=ts.to(problem.ts.dtype), probes=None, keep_mesh=False))
    system.dense = InitialValue(problem, solver.cut(problem)).dense
    return system


def _compiled(solver: Adaptive, marched: Marching, system: InitialValue, noise: Tensor | None) -> Estimates:
    ambient = replay.Ambient.of(system.problem.y0)
    with torch.no_grad(), ambient():
        trace = _march(system, noise, solver.stiffness)
    tape = Tape(marched, system, trace, ambient)
    inputs = [system.segments.edges, system.problem.y0, *replay.conditions(system.problem), *tape.parameters]
    error, stiffness, *_ = Replay.apply(tape, *inputs)
    tape.settle()
    return error[:, 0], None if stiffness is None else stiffness[:, 0]


def _march(system: InitialValue, noise: Tensor | None, stiffness: bool) -> Trace:
    stepper = system.engine
    assert stepper is not None
    z, slope = stepper.open()
    leg = next(system.legs())
    carry = stepper.begin(leg, z, slope)
    t, h = leg.moment(0.0, 1.0)
    step = stepper.step(leg, t, z, h, carry, noise)
    trace = Trace(z, estimated=(True, stiffness))
    trace.accept(Node(leg.segment, 0.0, 1.0, z, carry, True, noise), step)
    stepper.close()
    return trace
