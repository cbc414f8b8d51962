"""What is measured of each system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from benchmarking.problem import Problem, Result

P = TypeVar("P", bound=Problem[Any])


@dataclass(frozen=True)
class Cost:
    """Evaluations of the field: of the slowest row forward, again in the backward pass, and of all rows forward.

    said: the rows by the system's own statistics; counted: by the field itself; None where either cannot be known.
    """

    nfe: int
    again: int = 0
    said: int | None = None
    counted: int | None = None


class System(ABC, Generic[P]):
    """One way of solving a problem."""

    def __init__(self, problem: P) -> None:
        self.problem = problem

    @abstractmethod
    def call(self) -> None:
        """Solve, and train if the case does; returns when the results are there. This is what is timed."""

    @abstractmethod
    def cost(self) -> Cost: ...

    @abstractmethod
    def result(self) -> Result | None:
        """None where the noise is another than the reference's."""

    @abstractmethod
    def kept(self) -> int:
        """Bytes held between the forward and the backward pass, the solution among them, inputs not."""


@dataclass(frozen=True)
class Suite(Generic[P]):
    """What measures the cases of one kind: their problem, and the systems that solve it, by name.

    bare: of a problem, the call that makes `stages` evaluations of its field without a solver.
    """

    problem: Callable[[Any, torch.device], P]
    systems: Mapping[str, Callable[[P], System[P]]]
    bare: Callable[[P], Callable[[], None]] | None = None
    stages: int = 1
