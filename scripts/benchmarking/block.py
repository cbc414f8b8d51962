"""One case measured: a block of the table, a row for each system."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarking.cases import Case
from benchmarking.measure import Times, interleaved, timed, with_children
from benchmarking.problem import Result
from benchmarking.system import Cost, P, Suite, System


@dataclass(frozen=True)
class Row:
    """What is known of one system. first: seconds of its first call, compilation included, and first_cpu: of processor
    time, that of compilers included. times: of the later calls.

    error: the largest of the end state, against the reference. gradient_error: the relative one of all parameters'
    gradient. kept: bytes between forward and backward. None where there is no reference, or no gradient.
    """

    system: str
    first: float
    first_cpu: float
    times: Times
    cost: Cost
    error: float | None
    gradient_error: float | None
    kept: int | None


@dataclass(frozen=True)
class Block:
    """The rows of a case. bare: times of one evaluation of the bare field. absent: why a system has no row.

    others: what others used of the machine just afterwards, from 0 to 1; known when its process has ended.
    """

    case: Case
    rows: list[Row]
    bare: Times | None
    absent: dict[str, str]
    others: float = math.nan

    def row(self, system: str) -> Row | None:
        return next((row for row in self.rows if row.system == system), None)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(case: Case, wanted: Sequence[str], device: torch.device, repeats: int) -> Block:
    """Call each system once, time all of them by turns, then look at what they computed."""
    suite = case.suite()
    problem = suite.problem(case, device)
    systems, absent = made(suite, problem, [name for name in case.systems if name in wanted and name in suite.systems])
    calls: list[Callable[[], object]] = [system.call for system in systems.values()]
    if suite.bare is not None and "bare-field" in case.systems and "bare-field" in wanted:
        calls.append(suite.bare(problem))
    first = [timed(call, with_children) for call in calls]
    times = interleaved(calls, min(repeats, case.repeats))
    reference = problem.reference()
    rows = [
        Row(name, *before, its, system.cost(), *errors(system, reference), system.kept() if case.train else None)
        for (name, system), before, its in zip(systems.items(), first, times, strict=False)
    ]
    return Block(case, rows, times[-1].scaled(1 / suite.stages) if len(times) > len(rows) else None, absent)


def joined(blocks: Mapping[str, Block]) -> Block:
    """What processes measured of one case with one system, as rows with the names of the processes."""
    rows = [replace(row, system=name) for name, block in blocks.items() for row in block.rows]
    return replace(list(blocks.values())[-1], rows=rows)


def made(suite: Suite[P], problem: P, names: Sequence[str]) -> tuple[dict[str, System[P]], dict[str, str]]:
    """The systems that are installed, and why the others are absent."""
    systems: dict[str, System[P]] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            systems[name] = suite.systems[name](problem)
        except ImportError as error:
            absent[name] = str(error)
    return systems, absent


def errors(system: System[Any], reference: Result | None) -> tuple[float | None, float | None]:
    """Of the end state and of the gradient."""
    found = None if reference is None else system.result()
    if reference is None or found is None:
        return None, None
    error = (found.y - reference.y).abs().max().item()
    if found.gradient is None or reference.gradient is None:
        return error, None
    return error, ((found.gradient - reference.gradient).norm() / reference.gradient.norm()).item()
