"""One case measured: a block of the table, a row for each system."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarking.cases import PACKAGES, Case
from benchmarking.measure import Times, interleaved, seconds
from benchmarking.problems import Problem, Result
from benchmarking.system import Cost, System
from benchmarking.systems_torch import STAGES, Limit, Ndeflow, Separate, TorchDiffEq, Torchode
from ndeflow import Checkpointed, Direct


def diffrax(problem: Problem) -> System:
    from benchmarking.system_jax import Diffrax

    return Diffrax(problem)


SYSTEMS: dict[str, Callable[[Problem], System]] = {
    "ndeflow": lambda problem: Ndeflow(problem, Direct, "on"),
    "ndeflow-checkpointed": lambda problem: Ndeflow(problem, Checkpointed, "on"),
    "ndeflow-rows": lambda problem: Ndeflow(problem, Direct, "on", "per_sample"),
    "ndeflow-eager": lambda problem: Ndeflow(problem, Direct, "off"),
    "ndeflow-eager-checkpointed": lambda problem: Ndeflow(problem, Checkpointed, "off"),
    "ndeflow-eager-rows": lambda problem: Ndeflow(problem, Direct, "off", "per_sample"),
    "ndeflow-eager-separate": lambda problem: Separate(problem, Direct, "off"),
    "torchdiffeq": TorchDiffEq,
    "torchdiffeq-adjoint": lambda problem: TorchDiffEq(problem, adjoint=True),
    "torchode": Torchode,
    "diffrax": diffrax,
}


@dataclass
class Row:
    """What is known of one system. first: seconds of its first call, compilation included. times: of the later ones.

    error, gradient_error: against the reference. kept: bytes between forward and backward.
    """

    system: str
    first: float
    cost: Cost
    error: float | None = None
    gradient_error: float | None = None
    kept: int | None = None
    times: Times | None = None


@dataclass
class Block:
    """The rows of a case. limit: times of one evaluation of the bare field, compiled."""

    case: Case
    rows: list[Row]
    limit: Times | None
    absent: list[str]

    def row(self, system: str) -> Row | None:
        return next((row for row in self.rows if row.system == system), None)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(case: Case, wanted: Sequence[str], device: torch.device, repeats: int) -> Block:
    """Make and check each system once, then time all of them by turns."""
    problem = Problem(case, device)
    names = [name for name in case.systems if name in wanted and name != "limit"]
    systems = {name: SYSTEMS[name](problem) for name in names if installed(name)}
    absent = [name for name in names if name not in systems]
    reference = problem.reference()
    rows = [examined(name, system, reference) for name, system in systems.items()]
    calls: list[Callable[[], object]] = [system.call for system in systems.values()]
    if "limit" in case.systems and "limit" in wanted:
        limit = Limit(problem)
        limit.call()
        calls.append(limit.call)
    times = interleaved(calls, min(repeats, case.repeats))
    for row, its in zip(rows, times, strict=False):
        row.times = its
    return Block(case, rows, times[-1].scaled(1 / STAGES) if len(times) > len(rows) else None, absent)


def examined(name: str, system: System, reference: Result | None) -> Row:
    """A row without its times."""
    row = Row(name, seconds(system.call), system.cost())
    if reference is not None:
        result = system.result()
        row.error = (result.y - reference.y).abs().max().item()
        if result.gradient is not None and reference.gradient is not None:
            row.gradient_error = ((result.gradient - reference.gradient).norm() / reference.gradient.norm()).item()
    if system.problem.case.train:
        row.kept = system.kept()
    return row


def installed(name: str) -> bool:
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None
