"""Adaptive solvers: steps of which each says how large its error is, and the loop that chooses their sizes by it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.compilation import check_choice
from ndeflow.numerics.controllers import Controller, I
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.masking import check_on_failure
from ndeflow.numerics.norms import row_norms
from ndeflow.numerics.pacing import Pace, Rules, Shared
from ndeflow.numerics.persample import PerSample
from ndeflow.numerics.solution import NON_FINITE, SolveError, Step
from ndeflow.numerics.stepper import Eager, Stepper
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Trace, partial


@dataclass(frozen=True)
class Adaptive(Marching):
    """A marching solver whose steps are accepted or rejected by their scaled error; see `RungeKutta` for the options.

    Raises ValueError at construction for unknown names and non-positive tolerances, at the solve for tolerances below
    10 eps of the state's dtype.
    """

    method: str
    rtol: float = 1e-4
    atol: float = 1e-4
    controller: Controller = I()
    max_steps: int = 10_000
    compile: str = "auto"
    compile_after: int = 100_000
    batching: str = "shared"
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        if self.method not in self.methods:
            raise ValueError(f"expected method {', '.join(self.methods)}, got {self.method!r}")
        if not (0 <= self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(f"expected finite rtol >= 0 and atol > 0, got rtol {self.rtol}, atol {self.atol}")
        check_choice(self.compile)
        if self.max_steps < 1:
            raise ValueError(f"expected max_steps of at least 1, got {self.max_steps}")
        if self.batching not in ("shared", "per_sample"):
            raise ValueError(f"expected batching shared or per_sample, got {self.batching!r}")
        check_on_failure(self.on_failure)
        if self.masks and not self.apart:
            raise ValueError(
                "expected batching=per_sample for on_failure=mask, got shared, whose rows fail together; set "
                "batching=per_sample, or on_failure=raise"
            )

    @property
    @abstractmethod
    def methods(self) -> tuple[str, ...]:
        """The names of the methods there are."""

    @property
    @abstractmethod
    def order(self) -> float:
        """Of the error estimate, as a power of the step size."""

    @property
    @abstractmethod
    def stiffness(self) -> bool:
        """Whether steps estimate stiffness."""

    @property
    @abstractmethod
    def stability(self) -> float:
        """The length of the stability interval on the negative real axis, of methods that estimate stiffness."""

    @abstractmethod
    def start(self, leg: System, z: Tensor, slope: Tensor) -> Tensor:
        """The first step as a fraction of a segment, from slope = dz/dt at its start.

        0-dim, or (B,) of each row, as wide as times are; non-finite where the state or the slope is. No number is read
        from the device.
        """

    def reach(self, system: System, t: Tensor, z: Tensor, h: Tensor) -> Tensor:
        """The state that `advance` comes to, alone, of an equation without noise."""
        return self.advance(system, t, z, h).y

    def pace(self, system: System, stepper: Stepper, trace: Trace) -> Pace:
        """The pace of a march."""
        kind = PerSample if self.apart else Shared
        return kind(self.rules, stepper, trace)

    @property
    def apart(self) -> bool:
        return self.batching == "per_sample"

    @cached_property
    def rules(self) -> Rules:
        return Rules(self.controller, self.order, self.max_steps, self.method, self.masks)

    def check(self, problem: Problem) -> None:
        eps = torch.finfo(problem.y0.dtype).eps
        if max(self.rtol, self.atol) < 10 * eps:
            raise ValueError(
                f"expected a tolerance of at least {10 * eps:.1e} for {problem.y0.dtype}, got rtol {self.rtol:.1e}, "
                f"atol {self.atol:.1e}; raise it or solve in float64"
            )

    def march(self, system: System) -> Trace:
        stepper = system.engine or Eager(self)
        z, slope = stepper.open(system)
        trace = Trace(z, apart=self.apart, estimated=(True, self.stiffness))
        try:
            self._cross(system, stepper, self.pace(system, stepper, trace), slope)
        except SolveError as error:
            if isinstance(system, InitialValue) and error.status is not None and not (error.status == NON_FINITE).any():
                error.partial = partial(self, system, trace)
            raise
        stepper.close(system)
        trace.nfe = system.evaluations() if self.apart else system.calls
        return trace

    def _cross(self, system: System, stepper: Stepper, pace: Pace, slope: Tensor | None) -> None:
        for leg in system.legs():
            pace.enter(leg, slope)
            slope = None
            while pace.open:
                t, h, noise = pace.attempt()
                pace.take(stepper.step(pace.leg, t, pace.z, h, pace.carry, noise))

    def estimated(self, system: System, z0: Tensor, step: Step, reached: Tensor) -> Step:
        """A step from z0 with its error and what else it estimates, with `ratio` and, where rows step together, norms.

        The ratio is scaled by atol + rtol max(|z0|, |z1|). reached: packed states that must be finite for it to be.
        """
        assert step.error is not None
        judged = torch.add(step.error, reached.detach(), alpha=0)
        size = torch.maximum(system.judged(z0.detach()).abs(), system.judged(step.y.detach()).abs())
        scaled = self.scaled(system, judged, size)
        return step._replace(ratio=row_norms(scaled), norms=self.norms(scaled, step.stiffness))

    def norms(self, *estimates: Tensor | None) -> Sequence[Tensor]:
        """Of estimates over all rows, with gradient 0 where they are 0; none where rows step apart."""
        return () if self.apart else [torch.linalg.vector_norm(x) for x in estimates if x is not None]

    def scaled(self, system: System, x: Tensor, size: Tensor) -> Tensor:
        """(B, ...), of which each row's norm is the root mean square of x / (atol + rtol size) over its judged part.

        size: of the judged part; the scale is a constant for autograd. NaN where the integrals in x are not finite.
        """
        part, integrals = system.judged(x), system.beside(x)
        root = math.sqrt(part[0].numel())
        scale = size * (self.rtol * root) + self.atol * root
        if integrals is not None:
            scale = scale + (integrals.detach() * 0).sum(dim=1).view(-1, *[1] * (scale.dim() - 1))
        return system.measured(part / scale)

    def norm(self, leg: System, x: Tensor, size: Tensor) -> Tensor:
        """The root mean square of x by `scaled`: see `together`."""
        return self.together(leg, row_norms(self.scaled(leg, x, size)))

    def together(self, leg: System, sizes: Tensor) -> Tensor:
        """Sizes (B,) as wide as times are: of each row, or their root mean square over the rows that move, 0-dim."""
        sizes = sizes.to(leg.start.dtype)
        return sizes if self.apart else torch.linalg.vector_norm(sizes) / leg.moving**0.5
