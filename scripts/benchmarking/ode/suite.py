"""The systems of the cases of ordinary differential equations, by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarking.ode.penalized import Penalized
from benchmarking.ode.problem import ODEProblem
from benchmarking.ode.systems import STAGES, BareField, Ndeflow, Separate, TorchDiffEq, Torchode
from benchmarking.system import Suite, System
from ndeflow import Checkpointed, Direct, Regularizer
from ndeflow.regularizers import (
    GlobalError,
    JacobianFrobenius,
    Kinetic,
    LocalError,
    Stiffness,
    TaylorDerivative,
    TrajectoryPolynomial,
)


def diffrax(problem: ODEProblem) -> System[ODEProblem]:
    from benchmarking.ode.peer import Diffrax

    return Diffrax(problem)


PENALTIES: dict[str, Callable[[], Regularizer]] = {
    "error": GlobalError,
    "stiffness": Stiffness,
    "local": LocalError,
    "local-biased": lambda: LocalError(sampling="biased"),
    "kinetic": Kinetic,
    "jacobian": JacobianFrobenius,
    "taylor": TaylorDerivative,
    "polynomial": TrajectoryPolynomial,
}


def penalized(penalty: str, compile: str) -> Callable[[ODEProblem], System[ODEProblem]]:
    return lambda problem: Penalized(problem, PENALTIES[penalty](), compile)


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
        **{f"ndeflow-{name}": penalized(name, "on") for name in PENALTIES},
        **{f"ndeflow-eager-{name}": penalized(name, "off") for name in PENALTIES},
        "torchdiffeq": TorchDiffEq,
        "torchdiffeq-adjoint": lambda problem: TorchDiffEq(problem, adjoint=True),
        "torchode": Torchode,
        "diffrax": diffrax,
    },
    lambda problem: BareField(problem).call,
    STAGES,
)
