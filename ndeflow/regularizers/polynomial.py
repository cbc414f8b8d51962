"""How far a trajectory is from a polynomial in time."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Problem, Solved
from ndeflow.regularizers.solves import SolvePenalty, needs_derivative, read_at_random


@final
class TrajectoryPolynomial(SolvePenalty):
    """The squared distance of states along the solution from the nearest polynomial in time (TPR).

    R = |(I - U U') Z|^2 / (n + 2), of states Z at the start, at n uniformly random times and at the end, with U an
    orthonormal basis of polynomials up to `degree` at these times; summed over the state, mean over the batch. It is 0
    where the solution is such a polynomial. Huang, Yeh 2021, "Accelerating continuous normalizing flow with trajectory
    polynomial regularization", eq. 8. Several solves are added up; the times are drawn at each.

    degree: 1 or more. points: n >= degree, so that there are more times than coefficients. Raises ValueError otherwise,
    and for an SDE.
    """

    def __init__(self, weight: float | Decay = 0.1, *, degree: int = 1, points: int = 2) -> None:
        super().__init__(weight)
        if degree < 1 or points < degree:
            raise ValueError(f"expected degree >= 1 and points >= degree, got degree {degree}, points {points}")
        self.degree, self.points = degree, points

    def prepare(self, problem: Problem) -> Problem:
        needs_derivative(problem, type(self).__name__)
        return read_at_random(problem, self.points)

    def of(self, one: Solved) -> Tensor:
        solution, last = one.solution, one.solution.problem.ts.shape[-1] - 1
        places = [0, *one.probes, last]
        times, z = solution.ts.detach()[..., places], solution.ys[:, places].flatten(2)
        span = times[..., -1:] - times[..., :1]
        fraction = ((times - times[..., :1]) / torch.where(span == 0, 1.0, span)).to(z.dtype)
        powers = torch.stack([fraction**k for k in range(self.degree + 1)], dim=-1)
        basis, _ = torch.linalg.qr(powers)
        rest = z - basis @ (basis.mT @ z)
        return rest.square().sum(dim=(1, 2)).mean() / len(places)
