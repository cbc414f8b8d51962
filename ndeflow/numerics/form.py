"""How the steps of a solver are written as functions of flat tensors, so that they can be compiled."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.solution import ESTIMATES, Step
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
    from ndeflow.numerics.chunks import Chunked
    from ndeflow.numerics.explicit import RungeKutta
    from ndeflow.numerics.stepper import Stepper

MID, RATIO, RATIO_NORM, STIFFNESS, STIFFNESS_NORM = range(1 + ESTIMATES)  # places of what is inside a step
NOTHING = (None,) * (1 + ESTIMATES)  # nothing in each of them

Heads = tuple[tuple[int, ...], ...]


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
    def heads(self, dense: bool) -> Heads:
        """What of the inside of a step each of its products starts from, by places, beside y and the carry.

        The first from nothing, and the last from all that a step gives of it, in the order in which it does.
        """

    def outputs(self, dense: bool) -> int:
        """How many tensors a step gives."""
        return 1 + self.carries + len(self.heads(dense)[-1])

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
    """Of an adaptive solver; the constants are its tolerances. interpolates: steps of a dense solve have a mid."""

    interpolates: ClassVar[bool]

    def __init__(self, solver: Any, carries: int, more: int) -> None:
        super().__init__(carries, more, solver.evaluations)
        self.solver, self.count = solver, 1 + solver.stiffness
        dense = False, self.interpolates
        self._named = [_named(1 + carries, mid, solver.apart, self.count) for mid in dense]
        self._heads = [_heads(mid, solver.apart, self.count) for mid in dense]

    @property
    def key(self) -> tuple[Hashable, ...]:
        return type(self), self.solver.method, self.solver.batching

    def heads(self, dense: bool) -> Heads:
        return self._heads[dense]

    def given(self, step: Step) -> list[Tensor]:
        """A step, as far as the form gives it."""
        found = [step.y, *replay.carried(step.carry), step.mid, *step.estimates]
        return [x for x in found if x is not None]

    def result(self, results: Sequence[Tensor], dense: bool, kept: Any) -> Step:
        return Step(*self._named[dense]([*results, kept, None]))

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

    starting, interpolates = 2, True

    def __init__(self, solver: RungeKutta) -> None:
        super().__init__(solver, carries=1, more=2)

    def first(self, engine: Stepper, leg: InitialValue, z: Tensor) -> tuple[Any, Any]:
        return engine.start(leg, z, None)[0], None

    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        carry, rtol, atol = rest
        return self.given(self.tolerant(rtol, atol).advance(leg, t, z, h, carry))

    def probe(self, system: InitialValue) -> list[Tensor]:
        return [system.open()[1]]


@final
class StochasticForm(AdaptiveForm):
    """Of an adaptive solver of SDEs; more is the noise of a step."""

    starting, interpolates = 3, False

    def __init__(self, solver: AdaptiveStochastic) -> None:
        super().__init__(solver, carries=0, more=3)

    def first(self, engine: Stepper, leg: Any, z: Tensor) -> tuple[Any, Any]:
        zero = leg.index.new_zeros(())
        place = torch.zeros_like(leg.index) if self.solver.apart else zero
        engine.start(leg, z, None)
        normals = engine.normals(leg, zero, place, zero, zero, leg.index)
        return None, torch.stack([*normals], dim=1)

    def step(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        noise, rtol, atol = rest
        return self.given(self.tolerant(rtol, atol).advance(leg, t, z, h, None, noise))

    def probe(self, system: InitialValue) -> list[Tensor]:
        z, slope = system.open()
        leg = system.at(system.segments.first)
        return [slope, leg.diffusion(leg.start.to(z.dtype), z)]


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

    def heads(self, dense: bool) -> Heads:
        return ((),)

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


@cache
def _heads(dense: bool, apart: bool, count: int) -> Heads:
    """Of an adaptive step that gives so many estimates: save times inside it ask for mid, a penalty for an estimate."""
    mid = (MID,) if dense else ()
    kinds = [(RATIO,), (STIFFNESS,)] if apart else [(RATIO, RATIO_NORM), (STIFFNESS, STIFFNESS_NORM)]
    each = [mid + kind for kind in kinds[:count]]
    return tuple(dict.fromkeys([(), mid, *each, sum(kinds[:count], mid)]))


def _named(states: int, mid: bool, apart: bool, count: int) -> Callable[[list[Any]], Sequence[Any]]:
    """What picks the fields of a `Step`, in their order, from the results of an adaptive step, what it keeps, and None.

    states: of the state and the carry's tensor. mid: there is one. apart: there are no norms. count: of the estimates.
    """
    ratio, each = states + mid, 1 if apart else 2  # each estimate is followed by its norm
    stiffness = ratio + each if count > 1 else -1
    norms = slice(ratio + 1, ratio + 1 if apart else ratio + 2 * count, 2)
    return itemgetter(0, -1, ratio, stiffness, ratio - 1 if mid else -1, 1 if states > 1 else -1, -2, norms)


@lru_cache(maxsize=256)
def number(value: float, device: torch.device) -> Tensor:
    """A float64 tensor; kept, for the same numbers are asked for again and again."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device=device)
