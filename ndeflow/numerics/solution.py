"""What a solve gives back, and what a solver and an adjoint are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.mesh import Attempts, Mesh

if TYPE_CHECKING:
    from ndeflow.numerics.trace import Trail

NON_FINITE, UNDERFLOW, TOO_MANY = 1, 2, 3  # why a row failed, as `Stats.status` says
ESTIMATES = 4  # of a step: ratio and its norm, stiffness and its norm

Estimates = Sequence[Tensor | None]
"""Of the steps of a solve, each as in `ESTIMATES`; None where a method has none."""


class SolveError(RuntimeError):
    """A solve that could not be carried out; the message names time, step size and cure.

    status: (B,) int64 as in `Stats`, where the solver can tell which rows failed. partial: the solve so far, to be
    diagnosed, where its steps were chosen by an error and that is finite.
    """

    def __init__(self, message: str, status: Tensor | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.partial: Solution | None = None


class Counts(NamedTuple):
    """What `Stats` counts, each (B,), or one number for all rows, of which a tensor is made when it is read."""

    rows: int
    device: torch.device
    nfe: int | Tensor
    accepted: int | Tensor
    rejected: int | Tensor
    status: int | Tensor = 0

    def of_each(self, count: int | Tensor) -> Tensor:
        """(B,) int64."""
        return count if isinstance(count, Tensor) else torch.full((self.rows,), count, device=self.device)


@dataclass
class Stats:
    """The cost of a solve and its accepted mesh. B rows, N accepted steps.

    counts: nfe, accepted, rejected and status, which are (B,) int64. nfe counts the evaluations in which a row was
    computed, rejected steps and starting heuristic included; accepted those steps of a failed row that it took before.
    status: 0 solved; failed, where the solver masks failures:
    1 state, integral or rate non-finite, 2 step size underflowed, 3 more than `max_steps` attempts.
    estimates: error, its norms, stiffness and its norms, each of which may be made when it is first read.
    mesh: where the solve stepped; it gives, when first read, `times` and `steps` (B, N), starts and sizes of the
    accepted steps, float64, never on the autograd graph, and `attempts`, the rejected steps among the accepted ones.
    error: (B, N), each row's tolerance-scaled RMS local error: sqrt(mean((e / (atol + rtol max(|y0|, |y1|)))^2)).
    stiffness: (B, N), |k_s - k_{s-1}| / |g_s - g_{s-1}| (Hairer & Wanner II, p. 22), in 1 / time; of an SDE see
    `AdaptiveStochastic`.
    error_norms, stiffness_norms: their Euclidean norms over the rows, (N,) each, where rows step together.
    All these are on the graph under adjoints with `differentiable_stats`, if they depend on what needs gradients; None
    where a method has none. Their second derivatives are not a number where rows share steps and one of them stands
    still.
    states: (B, N, *state), detached, at the starts of the steps, if the problem asked with `keep_mesh`; where rows step
    together from `trail`, from which more steps can be taken, otherwise `starts`.
    backward_nfe: evaluations of the backward pass, filled by it: a one-element list holding a number.
    """

    counts: Counts
    mesh: Mesh
    estimates: Estimates = (None,) * ESTIMATES
    starts: Tensor | None = None
    trail: Trail | None = None
    backward_nfe: list[int] | None = None

    @property
    def error(self) -> Tensor | None:
        return self.estimates[0]

    @property
    def stiffness(self) -> Tensor | None:
        return self.estimates[2]

    @property
    def error_norms(self) -> Tensor | None:
        return self.estimates[1]

    @property
    def stiffness_norms(self) -> Tensor | None:
        return self.estimates[3]

    @cached_property
    def nfe(self) -> Tensor:
        return self.counts.of_each(self.counts.nfe)

    @cached_property
    def accepted(self) -> Tensor:
        return self.counts.of_each(self.counts.accepted)

    @cached_property
    def rejected(self) -> Tensor:
        return self.counts.of_each(self.counts.rejected)

    @cached_property
    def status(self) -> Tensor:
        return self.counts.of_each(self.counts.status)

    @property
    def solved(self) -> bool:
        """Whether all rows are known to be solved without reading that from the device."""
        return not isinstance(self.counts.status, Tensor)

    @property
    def states(self) -> Tensor | None:
        return self.starts if self.trail is None else self.trail.states

    @property
    def times(self) -> Tensor:
        return self._accepted[0]

    @property
    def steps(self) -> Tensor:
        return self._accepted[1]

    @cached_property
    def attempts(self) -> Attempts:
        return self.mesh.attempts(self.error)

    @cached_property
    def _accepted(self) -> tuple[Tensor, Tensor]:
        return self.mesh.steps()


@dataclass
class Solution:
    """ys: (B, T, *state) at ts: (T,) or (B, T), T save times followed by the problem's probes.

    columns: the integrals, None: there are none. problem, solver: what was solved, and by which method.
    """

    ts: Tensor
    ys: Tensor
    stats: Stats
    columns: Tensor | None
    problem: Problem
    solver: Solver

    @property
    def integrals(self) -> Tensor:
        """(B, T, K), one column an integrand (a field's own dq first); K may be 0."""
        return self.ys.new_zeros(*self.ys.shape[:2], 0) if self.columns is None else self.columns

    @property
    def width(self) -> int:
        """K, the number of integrals."""
        return 0 if self.columns is None else self.columns.shape[-1]


class Step(NamedTuple):
    """The result of one step of size h from (t, y).

    y: (B, *state). error: the raw embedded difference, like y, or None. ratio: (B,) its tolerance-scaled RMS.
    stiffness: (B,) or None. mid: the state at t + h/2 for dense output, or None. carry: what the next step reuses
    (for a Runge-Kutta pair its last stage, dy/dt at t + h). kept: what an engine keeps of it for the backward pass.
    norms: Euclidean norms over the rows, 0-dim, of ratio and of stiffness, as far as there are such; empty where rows
    step apart.
    """

    y: Tensor
    error: Tensor | None
    ratio: Tensor | None
    stiffness: Tensor | None
    mid: Tensor | None
    carry: Any
    kept: Any = None
    norms: Sequence[Tensor] = ()

    @property
    def estimates(self) -> list[Tensor | None]:
        """Ratio, its norm, stiffness, its norm; None: there is none."""
        return named_estimates(self.ratio, self.stiffness, self.norms)


def named_estimates(ratio: Tensor | None, stiffness: Tensor | None, norms: Sequence[Tensor]) -> list[Tensor | None]:
    """What a step estimates, each at its place."""
    ratio_norm, stiffness_norm = (*norms, None, None)[:2]
    return [ratio, ratio_norm, stiffness, stiffness_norm]


class Solver(ABC):
    """A numerical method with its settings; final solvers are frozen dataclasses."""

    @property
    def masks(self) -> bool:
        """Whether the rows of a solve may fail one by one."""
        return False

    @abstractmethod
    def integrate(self, problem: Problem) -> Solution:
        """Solve the problem, recorded by autograd wherever gradients are enabled."""

    @abstractmethod
    def step(
        self, problem: Problem, t: Tensor, y: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        """One pure step from (t, y); t and h broadcast against y: 0-dim, or (B, 1, ..., 1)."""


class Adjoint(ABC):
    """How gradients of a solve are computed; it is handed the solver."""

    differentiable_stats: ClassVar[bool]

    @abstractmethod
    def __call__(self, solver: Solver, problem: Problem) -> Solution: ...
