"""Penalties and perturbations that make a model cheaper to solve."""

from ndeflow.regularizers.cost import GlobalError, Stiffness
from ndeflow.regularizers.end_time import EndTimeJitter
from ndeflow.regularizers.integrals import JacobianFrobenius, Kinetic, TaylorDerivative
from ndeflow.regularizers.local import LocalError, LocalStiffness
from ndeflow.regularizers.polynomial import TrajectoryPolynomial

__all__ = [
    "EndTimeJitter",
    "GlobalError",
    "JacobianFrobenius",
    "Kinetic",
    "LocalError",
    "LocalStiffness",
    "Stiffness",
    "TaylorDerivative",
    "TrajectoryPolynomial",
]
