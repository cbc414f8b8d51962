"""How the start and the steps of a solve are computed: operation by operation, or otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, final

from torch import Tensor

from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import System
from ndeflow.numerics.tree import node_normals


class Stepper(ABC):
    """What a march of a system asks for; `leg` is the system on a segment, z its packed state.

    It keeps no system that keeps it: what a solve has used is free as soon as nobody needs it.

    compiled: the steps are not recorded by autograd, and are to be taken again in the backward pass.
    """

    compiled: ClassVar[bool] = False

    @abstractmethod
    def open(self, system: System) -> tuple[Tensor, Tensor | None]:
        """The packed state at the start, and dz/dt there; None: `start` or `begin` finds it."""

    @abstractmethod
    def start(self, leg: System, z: Tensor, slope: Tensor | None) -> tuple[Any, Tensor]:
        """The carry of the first step, and an adaptive solver's first step as a fraction of the segment."""

    @abstractmethod
    def begin(self, leg: System, z: Tensor, slope: Tensor | None) -> Any:
        """The carry of the first step of a segment, from dz/dt at its start; None: it is evaluated here."""

    @abstractmethod
    def step(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any = None) -> Step:
        """One step, as the solver's `advance`; the raw error may be left out."""

    def undo(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any) -> tuple[Tensor, Any]:
        """z and carry before a step, from those after it, as the solver's `undo`."""
        raise NotImplementedError

    def normals(
        self, leg: Any, word: Tensor, place: Tensor, low: Tensor, high: Tensor, index: Tensor
    ) -> Sequence[Tensor]:
        """The normals of a node of the trees with the key (low, high): see `node_normals`."""
        return node_normals((low, high), index, word, place, leg.channels, leg.problem.y0.dtype)

    def close(self, system: System) -> None:  # noqa: B027
        """The march is over."""


class Meter(Protocol):
    """Something that adds up evaluations."""

    def count(self, evaluations: int) -> None:
        """Add evaluations."""


@final
class Eager(Stepper):
    """Steps of a solver computed operation by operation, recorded by autograd where gradients are enabled.

    meter: what the evaluations of the march are added to.
    """

    def __init__(self, solver: Any, meter: Meter | None = None) -> None:
        self.solver, self.meter = solver, meter

    def open(self, system: System) -> tuple[Tensor, Tensor]:
        return system.open()

    def start(self, leg: System, z: Tensor, slope: Tensor | None) -> tuple[Any, Tensor]:
        slope = leg.slope(z) if slope is None else slope
        return self.solver.begin(leg, leg.start, z, slope), self.solver.start(leg, z, slope)

    def begin(self, leg: System, z: Tensor, slope: Tensor | None) -> Any:
        return self.solver.begin(leg, leg.start, z, slope)

    def step(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any = None) -> Step:
        return self.solver.advance(leg, t, z, h, carry, noise)

    def undo(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any) -> tuple[Tensor, Any]:
        return self.solver.undo(leg, t, z, h, carry, noise)

    def close(self, system: System) -> None:
        if self.meter is not None:
            self.meter.count(system.calls)
