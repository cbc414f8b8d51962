"""Gradients of the discrete solve: recorded as it runs, or recomputed step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.masking import masked
from ndeflow.numerics.origins import check_apart, check_unmoved
from ndeflow.numerics.purity import repeatable
from ndeflow.numerics.reverse import CompiledReverse, EagerReverse
from ndeflow.numerics.solution import ESTIMATES, Adjoint, Solution, Solver
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.tape import Tape
from ndeflow.numerics.trace import finish, solution, statistics


@final
@dataclass(frozen=True)
class Direct(Adjoint):
    """Autograd records the whole solve: fastest where memory allows, any field, any solver, any order of gradient."""

    differentiable_stats: ClassVar[bool] = True

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        if not isinstance(solver, Marching):
            return solver.integrate(problem)
        return masked(self._solve, solver, problem)

    def _solve(self, solver: Marching, problem: Problem) -> Solution:
        system, recording = solver.system(problem), replay.records(problem)
        marched = solver.engage(system, recording, keeping=True)
        if recording and system.compiled:
            return replayed(solver, marched, system)
        return solution(solver, system, marched.march(system))


@final
@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Keeps the state at each accepted step and takes every step again in the backward pass.

    The gradient is that of the discrete solve, as `Direct`'s to rounding, for the memory of one step's graph and
    two states a step. Error and stiffness, dense output, context and times are differentiated too, twice if
    asked. The field must be a module that gives the same values when called again. `stats.backward_nfe` is filled
    by the backward pass. Raises ValueError for a field that is not a module, that draws random numbers, gathers
    running statistics or writes into its buffers, and for solvers that do not march by steps.
    """

    differentiable_stats: ClassVar[bool] = True

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        if not isinstance(solver, Marching):
            raise ValueError(
                f"expected a solver that marches by steps for Checkpointed, got {type(solver).__name__}; use Direct()"
            )
        replay.needs_module(problem, "Checkpointed")
        return masked(self._solve, solver, problem)

    def _solve(self, solver: Marching, problem: Problem) -> Solution:
        system, recording = solver.system(problem), replay.records(problem)
        marched = solver.engage(system, recording, keeping=False)
        return replayed(solver, marched, system) if recording else solution(solver, system, marched.march(system))


def replayed(solver: Solver, marched: Marching, system: InitialValue, kind: type[Tape] = Tape) -> Solution:
    """The solution of a march that autograd does not record, with gradients by taking its steps again.

    solver: the one that was asked for. marched: what it marches the system as.
    """
    problem, engine = system.problem, cast(Any, system.engine)
    ambient = engine.ambient if system.compiled else replay.Ambient.of(problem.y0)
    with torch.no_grad(), ambient(), _checked(system):
        trace = marched.march(system)
    tape = kind(marched, system, trace, ambient)
    inputs = [system.segments.edges, problem.y0, *replay.conditions(problem), *tape.parameters]
    outputs = _recorded(tape, *inputs)
    stats = statistics(system, trace, trace.filled(outputs[:ESTIMATES]))
    stats.backward_nfe = tape.backward_nfe
    tape.settle()
    return finish(solver, system, tape.plan.read(outputs[ESTIMATES:]), stats)


def _checked(system: InitialValue) -> AbstractContextManager[None]:
    """What the march is watched by: a compiled system has been audited."""
    return nullcontext() if system.compiled else repeatable(replay.modules(system.problem), system.problem.y0.device)


class Replay(torch.autograd.Function):
    """(edges, y0, *conditions, *parameters) -> (*estimates, *stacks), taking steps again in the backward."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, edges: Tensor, y0: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        ctx.count = 2 + len(tensors)
        ctx.save_for_backward(edges, y0, *tensors, *tape.others)  # so that nobody writes to these meanwhile
        return tape.outputs(tape.trace.room(), tape.trace)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, inputs = ctx.tape, list(ctx.saved_tensors[: ctx.count])
        edges, y0, *rest = inputs
        conditions = rest[: len(rest) - len(tape.parameters)]
        if torch.is_grad_enabled():
            check_unmoved(tape.system.problem, tape.parameters)
            check_apart(inputs)
            outputs = tape.again(edges, y0, conditions)
            return None, *replay.grads(outputs, inputs, cotangents, create_graph=True)
        compiled = tape.system.compiled and not edges.requires_grad
        sweep = CompiledReverse if compiled else EagerReverse
        found = sweep(tape, edges, conditions).run(*cotangents)
        tape.check()
        return None, *found


_below: Any = super(torch.autograd.Function, Replay)
_recorded: Callable[..., Any] = _below.apply
"""`Replay.apply` without its look for transforms of torch.func: under these nothing is replayed."""
