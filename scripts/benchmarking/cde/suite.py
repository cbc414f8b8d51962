"""The systems of the cases of controlled differential equations, by name: each with its adjoint."""

from __future__ import annotations

from benchmarking.cde.problem import CDEProblem
from benchmarking.cde.systems import Ndeflow, TorchCDE
from benchmarking.system import Suite, System
from ndeflow import Checkpointed, Direct


def diffrax(problem: CDEProblem, adjoint: str, jumps: bool = False) -> System[CDEProblem]:
    from benchmarking.cde.peer import Diffrax

    return Diffrax(problem, adjoint, jumps)


SUITE = Suite(
    CDEProblem,
    {
        "ndeflow-direct": lambda problem: Ndeflow(problem, Direct, "on"),
        "ndeflow-checkpointed": lambda problem: Ndeflow(problem, Checkpointed, "on"),
        "ndeflow-eager-direct": lambda problem: Ndeflow(problem, Direct, "off"),
        "torchcde-autograd": TorchCDE,
        "torchcde-autograd-jumps": lambda problem: TorchCDE(problem, jumps=True),
        "diffrax-checkpointed": lambda problem: diffrax(problem, "checkpointed"),
        "diffrax-checkpointed-jumps": lambda problem: diffrax(problem, "checkpointed", jumps=True),
        "diffrax-backsolve": lambda problem: diffrax(problem, "backsolve"),
        "diffrax-backsolve-jumps": lambda problem: diffrax(problem, "backsolve", jumps=True),
    },
)
