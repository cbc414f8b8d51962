"""How the steps of a solver are written as functions of flat tensors, so that they can be compiled."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
    from ndeflow.numerics.chunks import Chunked
    from ndeflow.numerics.explicit import RungeKutta
    from ndeflow.numerics.stepper import Stepper

RATIO, STIFFNESS, MID = range(3)


class Form(ABC):
    """A step as a function of t, h, z, the tensors of its carry, and of more that never needs a gradient.

    It gives y, the tensors of the new carry, and what else a `Step` holds. carries: tensors of a carry. more: the
    arguments that follow it. evaluations: of the field, in a step. starting: in an adaptive solver's `start`.
    """

    solver: Any
    starting: int = 0

    def __init__(self, carries: int, more: int, evaluations: int) -> None:
        self.carries, self.about, self.evaluations = carries, 3 + carries + more, evaluations

    @property
    def states(self) -> range:
        """The places of the arguments that get gradients: z and the carry."""
        return range(2, 3 + self.carries)

    @property
    @abstractmethod
    def key(self) -> tuple[Hashable, ...]:
        """What of a solver's settings its programs depend on."""

    @abstractmethod
    def constants(self, system: InitialValue) -> list[Tensor]:
        """The last arguments, the same for all steps of a solve."""

    @abstractmethod
    def inner(self, dense: bool) -> list[int]:
        """Which of RATIO, STIFFNESS and MID a step gives behind y and the carry."""

    def outputs(self, dense: bool) -> int:
        """How many tensors a step gives."""
        return 1 + self.carries + len(self.inner(dense))

    def heads(self, dense: bool) -> tuple[int, ...]:
        """The results of a step that a product starts from: y and carry, and all."""
        ends, outputs = 1 + self.carries, self.outputs(dense)
        return (ends, outputs) if outputs > ends else (ends,)

    @abstractmethod
    def first(self, engine: Stepper, leg: InitialValue, z: Tensor) -> tuple[Any, Any]:
        """The carry and the noise of the first step of a leg."""

    @abstractmethod
    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """The step, from all its arguments."""

    def undo(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """z and the carry before the step, from those after it."""
        raise NotImplementedError

    @abstractmethod
    def begin(self, leg: InitialValue, t: Tensor, z: Tensor) -> list[Tensor]:
        """The carry of a step that is the first after a knot."""

    @abstractmethod
    def probe(self, system: InitialValue) -> list[Tensor]:
        """All that the right-hand side gives, evaluated once: its parameters are those that these depend on."""

    @abstractmethod
    def result(self, results: Sequence[Tensor], dense: bool, kept: Any) -> Step:
        """What a step gave, by its names."""


class AdaptiveForm(Form):
    """Of an adaptive solver; the constants are its tolerances."""

    @property
    def key(self) -> tuple[Hashable, ...]:
        return type(self), self.solver.method, self.solver.batching

    def constants(self, system: InitialValue) -> list[Tensor]:
        return [number(x, system.problem.y0.device) for x in (self.solver.rtol, self.solver.atol)]

    def begin(self, leg: InitialValue, t: Tensor, z: Tensor) -> list[Tensor]:
        return [leg(t.to(z.dtype.to_real()), z)]

    def tolerant(self, rtol: Tensor, atol: Tensor) -> Any:
        """The solver with tolerances that are tensors."""
        solver = copy.copy(self.solver)
        object.__setattr__(solver, "rtol", rtol)
        object.__setattr__(solver, "atol", atol)
        return solver


@final
class PairForm(AdaptiveForm):
    """Of an adaptive Runge-Kutta pair; the carry is dz/dt."""

    starting = 2

    def __init__(self, solver: RungeKutta) -> None:
        super().__init__(carries=1, more=2, evaluations=len(solver.tableau.c) - 1)
        self.solver = solver

    def inner(self, dense: bool) -> list[int]:
        return [RATIO, *[STIFFNESS] * self.solver.tableau.stiffness, *[MID] * dense]

    def first(self, engine: Stepper, leg: InitialValue, z: Tensor) -> tuple[Any, Any]:
        return engine.start(leg, z, None)[0], None

    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        carry, rtol, atol = rest
        step = self.tolerant(rtol, atol).advance(leg, t, z, h, carry)
        return [x for x in (step.y, step.carry, step.ratio, step.stiffness, step.mid) if x is not None]

    def probe(self, system: InitialValue) -> list[Tensor]:
        return [system.open()[1]]

    def result(self, results: Sequence[Tensor], dense: bool, kept: Any) -> Step:
        y, carry, ratio, *rest = results
        mid = rest.pop() if dense else None
        return Step(y, None, ratio, rest.pop() if rest else None, mid, carry, kept)


@final
class StochasticForm(AdaptiveForm):
    """Of an adaptive solver of SDEs; more is the noise of a step."""

    starting = 3

    def __init__(self, solver: AdaptiveStochastic) -> None:
        super().__init__(carries=0, more=3, evaluations=solver.evaluations)
        self.solver = solver

    def inner(self, dense: bool) -> list[int]:
        return [RATIO, STIFFNESS]

    def first(self, engine: Stepper, leg: Any, z: Tensor) -> tuple[Any, Any]:
        zero = leg.index.new_zeros(())
        place = torch.zeros_like(leg.index) if self.solver.apart else zero
        engine.start(leg, z, None)
        normals = engine.normals(leg, zero, place, zero, zero, leg.index)
        return None, torch.stack([*normals], dim=1)

    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        noise, rtol, atol = rest
        step: Any = self.tolerant(rtol, atol).advance(leg, t, z, h, None, noise)
        return [step.y, step.ratio, step.stiffness]

    def probe(self, system: InitialValue) -> list[Tensor]:
        z, slope = system.open()
        leg = system.at(system.segments.first)
        return [slope, leg.diffusion(leg.start.to(z.dtype), z)]

    def result(self, results: Sequence[Tensor], dense: bool, kept: Any) -> Step:
        y, ratio, stiffness = results
        return Step(y, None, ratio, stiffness, None, None, kept)


@final
class FixedForm(Form):
    """Of a fixed-step solver, so many steps at a time; more is the noise: the number of a step, seed and index."""

    def __init__(self, solver: Chunked) -> None:
        super().__init__(solver.carries, solver.base.randoms, solver.evaluations)
        self.solver = solver

    @property
    def key(self) -> tuple[Hashable, ...]:
        return type(self.solver.base), self.solver.base.method, self.solver.size

    def constants(self, system: InitialValue) -> list[Tensor]:
        return []

    def inner(self, dense: bool) -> list[int]:
        return []

    def first(self, engine: Stepper, leg: InitialValue, z: Tensor) -> tuple[Any, Any]:
        return engine.begin(leg, z, None), next(iter(self.solver.noises(leg, 0)))

    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        carry, noise = rest[: self.carries], rest[self.carries :]
        step = self.solver.advance(leg, t, z, h, replay.packed(carry), noise or None)
        return [step.y, *replay.carried(step.carry)]

    def undo(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        carry, noise = rest[: self.carries], rest[self.carries :]
        before, carry = self.solver.undo(leg, t, z, h, carry, noise or None)
        return [before, *replay.carried(carry)]

    def begin(self, leg: InitialValue, t: Tensor, z: Tensor) -> list[Tensor]:
        return replay.carried(self.solver.begin(leg, t, z, leg(t.to(z.dtype), z)))

    def probe(self, system: InitialValue) -> list[Tensor]:
        z, slope = system.open()
        leg = system.at(system.segments.first)
        return [slope, *self.solver.base.noisy(leg, leg.start.to(z.dtype), z)]

    def result(self, results: Sequence[Tensor], dense: bool, kept: Any) -> Step:
        y, *carry = results
        return Step(y, None, None, None, None, replay.packed(carry), kept)


@lru_cache(maxsize=256)
def number(value: float, device: torch.device) -> Tensor:
    """A float64 tensor; kept, for the same numbers are asked for again and again."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device=device)
