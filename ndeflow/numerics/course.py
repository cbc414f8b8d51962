"""The course of a solve: its attempts as plain numbers, and what they tell of the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, final

import torch

from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Solution


class Collapse(NamedTuple):
    """Rejected steps that all reached over one point, the first of size `before`, the last of size `after`."""

    time: float
    before: float
    after: float
    rejections: int


@final
@dataclass(frozen=True)
class Course:
    """The attempts by which the steps of a solve were chosen, as plain numbers.

    times, steps, error, accepted: of each attempt, with the scaled error that decided on it. product: |h| times
    stiffness of each accepted step, the largest of the rows; empty for a method that does not estimate stiffness.
    """

    times: list[float]
    steps: list[float]
    error: list[float]
    accepted: list[bool]
    product: list[float]

    @classmethod
    def of(cls, solution: Solution) -> Course:
        """Of the row that goes farthest, judged with all others; where each has its own pace, of the row with most."""
        times, steps, error, accepted = solution.stats.attempts
        error = torch.zeros_like(steps) if error is None else error
        together = not (isinstance(solution.solver, Marching) and solution.solver.apart)
        moves = steps != 0
        row = int((steps.abs() if together else moves).sum(dim=1).argmax())
        judges = slice(None) if together else slice(row, row + 1)
        decided = error[judges].square().where(moves[judges], 0).sum(dim=0) / moves[judges].sum(dim=0).clamp(min=1)
        columns = (times[row], steps[row], decided.sqrt(), accepted[row])
        return cls(*(x[moves[row]].tolist() for x in columns), product=_product(solution, row, judges))

    def order(self) -> list[float]:
        """log(e1 / e2) / log(h1 / h2) of each two rejections at the same time: the order of the local error."""
        tried = list(zip(self.times, self.steps, self.error, self.accepted, strict=True))
        return [
            math.log(e1 / e2) / math.log(h1 / h2)
            for (t1, h1, e1, kept1), (t2, h2, e2, kept2) in pairwise(tried)
            if not (kept1 or kept2) and t1 == t2 and h1 != h2 and math.isfinite(e1 + e2)
        ]

    def collapse(self) -> Collapse:
        """The point that most rejected steps reached over."""
        found, low, high = [Collapse(math.nan, 0.0, 0.0, 0)], math.inf, -math.inf
        for t, h, kept in zip(self.times, self.steps, self.accepted, strict=True):
            if kept:
                continue
            shared = max(low, min(t, t + h)), min(high, max(t, t + h))
            if shared[0] < shared[1]:
                (low, high), last = shared, found[-1]
                found[-1] = Collapse((low + high) / 2, last.before, abs(h), last.rejections + 1)
            else:
                low, high = min(t, t + h), max(t, t + h)
                found.append(Collapse(t + h / 2, abs(h), abs(h), 1))
        return max(found, key=lambda collapse: collapse.rejections)


def _product(solution: Solution, row: int, judges: slice) -> list[float]:
    stats = solution.stats
    if stats.stiffness is None:
        return []
    product = (stats.stiffness[judges].detach() * stats.steps[judges].abs()).amax(dim=0)
    return product[stats.steps[row] != 0].tolist()
