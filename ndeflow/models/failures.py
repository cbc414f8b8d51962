"""Rows whose solves failed, taken out of what a loss sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndeflow.contracts import Output, Solved
from ndeflow.numerics.solution import Solution
from ndeflow.numerics.some import some


class Remaining(NamedTuple):
    """A forward pass without the rows that failed. failed: (B,) bool, of the rows there were; None: none can fail."""

    output: Output
    batch: Any
    solved: Mapping[str, list[Solved]]
    failed: Tensor | None

    @property
    def empty(self) -> bool:
        """Whether no row is left."""
        return self.failed is not None and bool(self.failed.all())


def failures(output: Output, solved: Mapping[str, list[Solved]] | None = None) -> Tensor | None:
    """Rows (B,) of a batch of which a solve failed, in any draw; None where no solver masks failures."""
    rows, masked = output.prediction.shape[1 if output.draws else 0], _masked(output, solved or {})
    if not masked:
        return None
    return torch.stack([(s.stats.status != 0).view(-1, rows).any(dim=0) for s in masked]).any(dim=0)


def remaining(output: Output, batch: Any, solved: Mapping[str, list[Solved]]) -> Remaining:
    """The rows that were solved, of an output, its batch and its regularized solves.

    A batch that is not a `Batch` needs a method `of(rows)` as it has, where rows can fail.
    """
    failed = failures(output, solved)
    if failed is None or all(s.stats.solved for s in _masked(output, solved)) or not bool(failed.any()):
        return Remaining(output, batch, solved, failed)
    rows, count = (~failed).nonzero().flatten(), len(failed)
    kept = replace(output.of(rows), solutions=tuple(_of_draw(s, rows, count) for s in output.solutions))
    left = {name: [x._replace(solution=_of_draw(x.solution, rows, count)) for x in xs] for name, xs in solved.items()}
    return Remaining(kept, batch.of(rows), left, failed)


def _masked(output: Output, solved: Mapping[str, list[Solved]]) -> list[Solution]:
    """The solves whose rows may fail one by one."""
    others = [one.solution for those in solved.values() for one in those]
    return [s for s in (*output.solutions, *others) if s.solver.masks]


def _of_draw(solution: Solution, rows: Tensor, count: int) -> Solution:
    """Some rows of each draw: a solution holds `count` rows, as often as there are draws."""
    first = torch.arange(0, len(solution.ys), count, device=rows.device)
    return some(solution, (first.unsqueeze(1) + rows).flatten())
