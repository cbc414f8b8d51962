"""Rows that step together but fail one by one: what is left of them, and the solution of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.solution import Solution, Step
from ndeflow.numerics.some import some_problem
from ndeflow.numerics.trace import Trace

if TYPE_CHECKING:
    from ndeflow.numerics.marching import Marching


def check_on_failure(on_failure: str) -> None:
    """Raises ValueError for what is no choice of what becomes of a row that cannot be solved."""
    if on_failure not in ("raise", "mask"):
        raise ValueError(f"expected on_failure raise or mask, got {on_failure!r}")


def broken(step: Step) -> Tensor:
    """(B,) bool: rows whose state or integrals, at the end of a step or inside it, are not finite."""
    found = [x.isfinite().reshape(len(x), -1).all(dim=1) for x in (step.y, step.mid) if x is not None]
    return torch.stack(found).all(dim=0).logical_not()


def mend(trace: Trace) -> None:
    """Take a trace off the autograd graph, each row 0 from the end of the step on in which it failed.

    So times that it reached are read finite, also where they are read from all steps with weights.
    """
    assert trace.failures is not None
    stopped, nodes, steps = trace.failures.stopped, trace.nodes, trace.steps
    starts, ends = stopped.new_tensor([[node.segment + node.theta for node in nodes], trace.ends()]).unsqueeze(-1)
    left, over = stopped < starts, stopped < ends
    trace.nodes = [
        node._replace(z=_cleared(node.z, gone), carry=_cleared(node.carry, gone))
        for node, gone in zip(nodes, left, strict=True)
    ]
    trace.steps = [
        Step(_cleared(step.y, gone), None, None, None, _cleared(step.mid, gone), _cleared(step.carry, gone))
        for step, gone in zip(steps, over, strict=True)
    ]
    trace.kept = []


def _cleared(x: Any, gone: Tensor) -> Any:
    """A tensor (B, ...), or a carry, with 0 in the rows that are gone."""
    parts = [y.detach().masked_fill(gone.view(-1, *[1] * (y.dim() - 1)), 0.0) for y in replay.carried(x)]
    return replay.like_carry(x, parts)


def masked(solve: Callable[[Marching, Problem], Solution], solver: Marching, problem: Problem) -> Solution:
    """The solution by `solve`; where rows that step together failed, with NaN there, and gradients of the others alone.

    A NaN times a cotangent of 0 is NaN: rows that failed must be no part of the graph. So the others are solved again
    without them where gradients are recorded, and the evaluations of both solves are counted. Without a failure nothing
    is done.
    """
    found = solve(solver, problem)
    if found.stats.solved or solver.apart:
        return found
    found = _reached(found)
    if not torch.is_grad_enabled():
        return found
    good = (found.stats.status == 0).nonzero().flatten()
    if len(good) == 0:
        return _on_graph(found)
    return _filled(found, good, masked(solve, solver, some_problem(problem, good)))


def _reached(found: Solution) -> Solution:
    """The solution off the graph, NaN in rows that failed behind the start of the step in which they did."""
    stats, ts = found.stats, found.ts.detach()
    saved, ends = found.problem.ts.detach(), stats.times[:, -1:]
    late = (stats.status != 0).unsqueeze(1) & ((ts - ends) * (saved[..., -1:] - saved[..., :1]) > 0)
    ys, integrals = (
        x.detach().masked_fill(late.view(*late.shape, *[1] * (x.dim() - 2)), torch.nan)
        for x in (found.ys, found.integrals)
    )
    return replace(found, ys=ys, columns=integrals)


def _on_graph(found: Solution) -> Solution:
    """A solution of which no row was solved, with gradients of 0: those of an empty sum over all inputs."""
    problem = found.problem
    inputs = [problem.y0, problem.ts, *replay.conditions(problem), *replay.parameters(problem)]
    nothing = sum(x.flatten()[:0].real.sum() for x in inputs if x.requires_grad)
    return replace(found, ys=found.ys + nothing, columns=found.integrals + nothing)


def _filled(found: Solution, good: Tensor, rest: Solution) -> Solution:
    """The solution, its rows at the places `good` (R,) those of another one."""
    stats, counts = found.stats, found.stats.counts
    status = stats.status.index_copy(0, good, rest.stats.status)
    counts = counts._replace(nfe=stats.nfe.index_add(0, good, rest.stats.nfe), status=status)
    return replace(
        found,
        ys=found.ys.index_copy(0, good, rest.ys),
        columns=found.integrals.index_copy(0, good, rest.integrals),
        stats=replace(stats, counts=counts, backward_nfe=rest.stats.backward_nfe),
    )
