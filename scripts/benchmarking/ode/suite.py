"""The systems of the cases of ordinary differential equations, by name."""

from __future__ import annotations

from benchmarking.ode.penalized import Penalized, error, stiffness
from benchmarking.ode.problem import ODEProblem
from benchmarking.ode.systems import STAGES, BareField, Ndeflow, Separate, TorchDiffEq, Torchode
from benchmarking.system import Suite, System
from ndeflow import Checkpointed, Direct


def diffrax(problem: ODEProblem) -> System[ODEProblem]:
    from benchmarking.ode.peer import Diffrax

    return Diffrax(problem)


SUITE = Suite(
    ODEProblem,
    {
        "ndeflow": lambda problem: Ndeflow(problem, Direct, "on"),
        "ndeflow-checkpointed": lambda problem: Ndeflow(problem, Checkpointed, "on"),
        "ndeflow-rows": lambda problem: Ndeflow(problem, Direct, "on", "per_sample"),
        "ndeflow-eager": lambda problem: Ndeflow(problem, Direct, "off"),
        "ndeflow-eager-checkpointed": lambda problem: Ndeflow(problem, Checkpointed, "off"),
        "ndeflow-eager-rows": lambda problem: Ndeflow(problem, Direct, "off", "per_sample"),
        "ndeflow-eager-separate": lambda problem: Separate(problem, Direct, "off"),
        "ndeflow-error": lambda problem: Penalized(problem, error, "on"),
        "ndeflow-stiffness": lambda problem: Penalized(problem, stiffness, "on"),
        "ndeflow-eager-error": lambda problem: Penalized(problem, error, "off"),
        "ndeflow-eager-stiffness": lambda problem: Penalized(problem, stiffness, "off"),
        "torchdiffeq": TorchDiffEq,
        "torchdiffeq-adjoint": lambda problem: TorchDiffEq(problem, adjoint=True),
        "torchode": Torchode,
        "diffrax": diffrax,
    },
    lambda problem: BareField(problem).call,
    STAGES,
)
