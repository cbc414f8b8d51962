"""The systems of the cases of stochastic differential equations, by name: adjoint, then noise."""

from __future__ import annotations

from benchmarking.sde.problem import SDEProblem
from benchmarking.sde.systems import Loop, Ndeflow, TorchSDE, interval
from benchmarking.system import Suite, System
from ndeflow import Checkpointed, Direct


def scan(problem: SDEProblem) -> System[SDEProblem]:
    from benchmarking.sde.peers import Scan

    return Scan(problem)


def diffrax(problem: SDEProblem) -> System[SDEProblem]:
    from benchmarking.sde.peers import Diffrax

    return Diffrax(problem)


SUITE = Suite(
    SDEProblem,
    {
        "ndeflow-direct-philox": lambda problem: Ndeflow(problem, Direct, "on"),
        "ndeflow-checkpointed-philox": lambda problem: Ndeflow(problem, Checkpointed, "on"),
        "ndeflow-eager-direct-philox": lambda problem: Ndeflow(problem, Direct, "off"),
        "torchsde-autograd-interval": lambda problem: TorchSDE(problem, interval),
        "torchsde-autograd-default": lambda problem: TorchSDE(problem, lambda _: None),
        "loop-autograd-randn": Loop,
        "jax-scan-rbg": scan,
        "diffrax-checkpointed-tree": diffrax,
    },
)
