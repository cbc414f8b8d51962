"""What is measured of each system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from benchmarking.problems import Problem, Result


@dataclass(frozen=True)
class Cost:
    """Evaluations of the field: of the slowest row forward, again in the backward pass, and of all rows forward.

    said: the rows by the system's own statistics; counted: by the field itself; None where either cannot be known.
    """

    nfe: int
    again: int = 0
    said: int | None = None
    counted: int | None = None


class System(ABC):
    """One way of solving a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def call(self) -> None:
        """Solve, and train if the case does; returns when the results are there. This is what is timed."""

    @abstractmethod
    def cost(self) -> Cost: ...

    @abstractmethod
    def result(self) -> Result: ...

    @abstractmethod
    def kept(self) -> int:
        """Bytes held between the forward and the backward pass, the solution among them, inputs not."""
