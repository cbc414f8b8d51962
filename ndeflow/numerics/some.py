"""Solutions of a batch in which rows failed: without these rows, or with them held where they came to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.field import leaves, replace_leaves
from ndeflow.numerics.mesh import Attempts, Mesh
from ndeflow.numerics.solution import Counts, Solution, Stats


def held(solution: Solution) -> Solution:
    """Rows that failed hold the state, and integrals, of the last save time that they reached: finite, detached.

    A row that is not finite at its first time is 0.
    """
    if not solution.solver.masks or solution.stats.solved:
        return solution
    failed, saved = solution.stats.status != 0, solution.problem.ts.shape[-1]
    late = failed.unsqueeze(1) & solution.ys.isnan().flatten(2).any(dim=2)
    last = (~late[:, :saved]).sum(dim=1, keepdim=True).clamp(min=1) - 1
    ys, integrals = (_held(x, late, last) for x in (solution.ys, solution.integrals))
    return replace(solution, ys=ys, columns=integrals)


def _held(x: Tensor, late: Tensor, last: Tensor) -> Tensor:
    """x (B, M, ...), at late (B, M) places what it is at `last` (B, 1)."""
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    kept = x.detach()[rows, last].nan_to_num(0.0, 0.0, 0.0)
    return torch.where(late.view(*late.shape, *[1] * (x.dim() - 2)), kept, x)


def some(solution: Solution, rows: Tensor) -> Solution:
    """The solution of some rows (R,), by their places, as if no others had been solved."""
    stats, ts = solution.stats, solution.ts
    return Solution(
        ts[rows] if ts.dim() == 2 else ts,
        solution.ys[rows],
        Stats(
            Counts(
                len(rows), rows.device, *(x[rows] for x in (stats.nfe, stats.accepted, stats.rejected, stats.status))
            ),
            mesh=SomeRows(stats.mesh, rows),
            estimates=(_of(stats.error, rows), None, _of(stats.stiffness, rows), None),
            starts=_of(stats.states, rows),
            backward_nfe=stats.backward_nfe,
        ),
        solution.integrals[rows],
        some_problem(solution.problem, rows),
        solution.solver,
    )


@final
@dataclass(frozen=True)
class SomeRows(Mesh):
    """The steps of some rows (R,)."""

    mesh: Mesh
    rows: Tensor

    def steps(self) -> tuple[Tensor, Tensor]:
        times, steps = self.mesh.steps()
        return times[self.rows], steps[self.rows]

    def attempts(self, error: Tensor | None) -> Attempts:
        return Attempts(*(_of(x, self.rows) for x in self.mesh.attempts(error)))


def some_problem(problem: Problem, rows: Tensor) -> Problem:
    """The problem of some rows (R,), by their places, each with its own noise."""
    return replace(
        problem,
        y0=problem.y0[rows],
        ts=problem.ts[rows] if problem.ts.dim() == 2 else problem.ts,
        probes=problem.probes if problem.probes is None or problem.probes.dim() == 1 else problem.probes[rows],
        context=_context(problem.context, rows),
        integrands=tuple((module, _context(own, rows)) for module, own in problem.integrands),
        noise=None if problem.noise is None else problem.noise.of(rows),
    )


def _context(context: Any, rows: Tensor) -> Any:
    return replace_leaves(context, [leaf[rows] for leaf in leaves(context)])


def _of(x: Tensor | None, rows: Tensor) -> Any:
    return x if x is None else x[rows]
