"""What every model is: a module that turns a batch into a prediction by solving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, final

from torch import Tensor, nn

from ndeflow.contracts import Batch, DataSpec, Output, Problem, Regularizer, Solved
from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.field import SDE
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.solution import Adjoint, Solution, Solver
from ndeflow.numerics.solve import default_solver, pose
from ndeflow.numerics.some import held


class Preparation:
    """The solves of one training step: how each regularizer changed them, and what it may read of them."""

    def __init__(self, regularizers: Mapping[str, Regularizer]) -> None:
        self.regularizers = regularizers
        self.solved: dict[str, list[Solved]] = {name: [] for name in regularizers}

    def solve(self, solver: Solver, adjoint: Adjoint, problem: Problem) -> Solution:
        """Solve `problem` as all regularizers prepare it, and file the full solution for each of them."""
        probes, integrals = [], []
        for regularizer in self.regularizers.values():
            before, problem = problem, regularizer.prepare(problem)
            probes.append((_probes(before), _probes(problem)))
            integrals.append((len(before.integrands), len(problem.integrands)))
        solution = adjoint(solver, problem)
        own_dq = solution.width - len(problem.integrands)
        saved = problem.ts.shape[-1]
        for name, (p0, p1), (q0, q1) in zip(self.regularizers, probes, integrals, strict=True):
            mine = Solved(solution, range(saved + p0, saved + p1), range(own_dq + q0, own_dq + q1))
            self.solved[name].append(mine)
        return solution


class Model(nn.Module, ABC):
    """A module whose forward pass solves differential equations, always through `self.solve`.

    solver: how to solve; None: `RungeKutta()` for an ODE, `Stochastic()` for an SDE.
    adjoint: how gradients are computed; None: `Direct()`.
    spec: what the training data were, once a task has set it. noise_seed: the seed of the Brownian motions of
    the next forward pass; a task sets it at every training step.
    """

    reads_inputs: ClassVar[bool] = True
    """Whether the forward pass may read `batch.inputs`. One that does not is not trained on data that have them."""

    def __init__(self, *, solver: Solver | None = None, adjoint: Adjoint | None = None) -> None:
        super().__init__()
        self.solver = solver
        self.adjoint = adjoint or Direct()
        self.spec: DataSpec | None = None
        self.noise_seed = 0
        self._preparation: Preparation | None = None
        self._solves = 0

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """The prediction for a batch, with the solves behind it."""

    @property
    @abstractmethod
    def dynamics(self) -> nn.Module:
        """The right-hand side that `solve` integrates when no other field is given."""

    @final
    def solve(
        self,
        y0: Tensor,
        ts: Tensor,
        *,
        field: nn.Module | None = None,
        context: Any = None,
        integrands: Sequence[tuple[Integrand, Any]] = (),
        index: Tensor | None = None,
        regularized: bool = True,
    ) -> Solution:
        """Solve from y0 (B, *state) over ts (T,) or (B, T); `Solution.ys` is (B, T, *state).

        field: the model's own dynamics by default. index: (B,) keys of the rows' noise (an SDE's only).
        regularized=False exempts an auxiliary solve from regularizers. Raises SolveError where the solve fails; a row
        that fails under a solver that masks failures holds the state of the last time that it reached, detached.
        """
        field = self.dynamics if field is None else field
        noise = Brownian(mix(self.noise_seed, self._next_solve()), index) if isinstance(field, SDE) else None
        problem = pose(field, y0, ts, context=context, integrands=integrands, noise=noise)
        solver = self.solver or default_solver(field)
        if self._preparation is None or not regularized:
            return held(self.adjoint(solver, problem))
        return _asked_for(held(self._preparation.solve(solver, self.adjoint, problem)), problem)

    @final
    @contextmanager
    def prepared(self, regularizers: Mapping[str, Regularizer]) -> Iterator[Preparation]:
        """Inside, regularizers prepare every regularized solve; yields what their penalties may read."""
        self._preparation = Preparation(regularizers)
        self._solves = 0
        try:
            yield self._preparation
        finally:
            self._preparation = None

    def reseed(self, seed: int) -> None:
        """Set the seed of the Brownian motions of the next forward pass."""
        self.noise_seed, self._solves = seed, 0

    def _next_solve(self) -> int:
        self._solves += 1
        return self._solves


class OwnField(nn.Module):
    """A model's `field` method as a module; its parameters are the model's."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        return self.model.field(t, y, *context)

    def _get_name(self) -> str:
        return f"{type(self.model).__name__}.field"


def _probes(problem: Problem) -> int:
    return 0 if problem.probes is None else problem.probes.shape[-1]


def _asked_for(solution: Solution, problem: Problem) -> Solution:
    """The part of a prepared solution that the unprepared problem asks for."""
    times = problem.ts.shape[-1] + _probes(problem)
    added = len(solution.problem.integrands) - len(problem.integrands)
    if times == solution.ys.shape[1] and not added:
        return solution
    columns = solution.width - added
    return replace(
        solution,
        ts=solution.ts[..., :times],
        ys=solution.ys[:, :times],
        columns=solution.integrals[:, :times, :columns],
    )
