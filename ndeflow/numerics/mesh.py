"""Where a solve stepped: plain numbers while it marches, tensors once they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor


class Attempts(NamedTuple):
    """The attempted steps of a solve in their order, detached. B rows, A attempts, padded with zero steps.

    times, steps: (B, A), starts and sizes, float64. error: (B, A), each row's tolerance-scaled RMS local error; None
    where a method has none. accepted: (B, A) bool.
    """

    times: Tensor
    steps: Tensor
    error: Tensor | None
    accepted: Tensor


class Place(NamedTuple):
    """A step from the fraction theta of a segment over dtheta of it."""

    segment: int
    theta: float
    dtheta: float

    def parts(self, count: int) -> list[Place]:
        """As many equal steps."""
        dtheta = self.dtheta / count
        return [Place(self.segment, self.theta + j * dtheta, dtheta) for j in range(count)]


class Rejection(NamedTuple):
    """A rejected step: how many had been accepted before it, where it was tried, its scaled error (B,) or None."""

    after: int
    place: Place
    ratio: Tensor | None


class Mesh(ABC):
    """The steps a solve attempted."""

    @abstractmethod
    def steps(self) -> tuple[Tensor, Tensor]:
        """Starts and sizes of the accepted steps, (B, N)."""

    @abstractmethod
    def attempts(self, error: Tensor | None) -> Attempts:
        """All attempts, from the errors of the accepted steps (B, N)."""


@final
@dataclass(frozen=True)
class SharedMesh(Mesh):
    """The steps that all rows attempted together.

    edges: (S + 1,) or (S + 1, B), of the segments, detached. numbers: they as plain numbers, where these are known.
    """

    edges: Tensor
    rows: int
    accepted: Sequence[Place]
    rejected: Sequence[Rejection] = ()
    numbers: Sequence[float] | None = None

    def steps(self) -> tuple[Tensor, Tensor]:
        return self._spans(self.accepted)

    def sizes(self) -> list[float]:
        """Absolute sizes of the accepted steps, on average over rows; read from the device where rows have their own
        times."""
        if self.numbers is None:
            return self.steps()[1].abs().mean(dim=0).tolist()
        return [abs(p.dtheta * self._length(p, self.numbers)) for p in self.accepted]

    def attempts(self, error: Tensor | None) -> Attempts:
        count = len(self.accepted)
        keys = [*(n + 0.5 for n in range(count)), *(rejection.after for rejection in self.rejected)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        times, steps = self._spans([*self.accepted, *(r.place for r in self.rejected)])
        accepted = torch.arange(times.shape[1], device=times.device) < count
        if error is not None:
            ratios = [r.ratio for r in self.rejected if r.ratio is not None]
            error = torch.cat([error.detach(), *(ratio[:, None].to(error.dtype) for ratio in ratios)], dim=1)[:, order]
        return Attempts(times[:, order], steps[:, order], error, accepted.expand(self.rows, -1)[:, order])

    def _spans(self, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        if self.numbers is not None:
            lengths = [self._length(place, self.numbers) for place in places]
            times = [self.numbers[p.segment] + p.theta * length for p, length in zip(places, lengths, strict=True)]
            sizes = [p.dtheta * length for p, length in zip(places, lengths, strict=True)]
            found = self.edges.new_tensor([times, sizes]).unsqueeze(1).expand(-1, self.rows, -1)
            return found[0], found[1]
        segment = [place.segment for place in places]
        start, length = (x[segment].movedim(0, -1) for x in (self.edges[:-1], self.edges.diff(dim=0)))
        fractions = self.edges.new_tensor([place[1:] for place in places]).view(-1, 2)
        times, steps = start + fractions[:, 0] * length, fractions[:, 1] * length
        return times.expand(self.rows, -1), steps.expand(self.rows, -1)

    def _length(self, place: Place, numbers: Sequence[float]) -> float:
        """Of the segment of a step."""
        return numbers[place.segment + 1] - numbers[place.segment]


@final
@dataclass(frozen=True)
class BrokenMesh(Mesh):
    """Of steps that all rows took together those before a row failed, `taken` (B,); there it stands, by steps of 0."""

    mesh: SharedMesh
    taken: Tensor

    def steps(self) -> tuple[Tensor, Tensor]:
        times, steps = self.mesh.steps()
        there = self._there(times)
        ends = times.gather(1, self.taken.clamp(max=times.shape[1] - 1).unsqueeze(1))
        return torch.where(there, times, ends), torch.where(there, steps, 0.0)

    def attempts(self, error: Tensor | None) -> Attempts:
        times, steps = self.steps()
        return Attempts(times, steps, error, self._there(times))

    def _there(self, times: Tensor) -> Tensor:
        """(B, N) bool: the steps that rows took."""
        return torch.arange(times.shape[1], device=times.device) < self.taken.unsqueeze(1)
