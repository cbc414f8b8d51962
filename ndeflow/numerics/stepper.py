"""How the start and the steps of one adaptive solve are computed: operation by operation, or otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, final

from torch import Tensor

from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import System


class Stepper(ABC):
    """What an adaptive march asks for; `leg` is the system on a segment, z its packed state.

    compiled: the steps are not recorded by autograd, and are to be taken again in the backward pass.
    """

    compiled: ClassVar[bool] = False

    @abstractmethod
    def open(self) -> tuple[Tensor, Tensor | None]:
        """The packed state at the start, and dz/dt there; None: `start` finds it."""

    @abstractmethod
    def start(self, leg: System, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        """dz/dt at the start of the first segment, and the first step as a fraction of it, as the solver's `start`."""

    @abstractmethod
    def slope(self, leg: System, z: Tensor) -> Tensor:
        """dz/dt at the start of a segment; one evaluation."""

    @abstractmethod
    def step(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any) -> Step:
        """One step, as the solver's `advance`; the raw error may be left out."""

    def close(self) -> None:  # noqa: B027
        """The march is over."""


class Meter(Protocol):
    """Something that adds up evaluations."""

    def count(self, evaluations: int) -> None:
        """Add evaluations."""


@final
class Eager(Stepper):
    """Steps computed operation by operation, recorded by autograd where gradients are enabled.

    start: the solver's. meter: what the evaluations of the march are added to.
    """

    def __init__(
        self,
        solver: Marching,
        system: System,
        start: Callable[[System, Tensor, Tensor], Tensor],
        meter: Meter | None = None,
    ) -> None:
        self.solver, self.system, self.first, self.meter = solver, system, start, meter

    def open(self) -> tuple[Tensor, Tensor | None]:
        return self.system.open()

    def start(self, leg: System, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        slope = leg.slope(z) if slope is None else slope
        return slope, self.first(leg, z, slope)

    def slope(self, leg: System, z: Tensor) -> Tensor:
        return leg.slope(z)

    def step(self, leg: System, t: Tensor, z: Tensor, h: Tensor, carry: Any) -> Step:
        return self.solver.advance(leg, t, z, h, carry)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.count(self.system.calls)
