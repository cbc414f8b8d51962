"""Penalties and perturbations that make a model cheaper to solve."""

from ndeflow.regularizers.cost import GlobalError, Stiffness
from ndeflow.regularizers.end_time import EndTimeJitter
from ndeflow.regularizers.integrals import JacobianFrobenius, Kinetic, TaylorDerivative
from ndeflow.regularizers.local import LocalError, LocalStiffness
from ndeflow.regularizers.polynomial import TrajectoryPolynomial
from ndeflow.regularizers.released import ReleasedLocalError

__all__ = [
    "EndTimeJitter",
    "GlobalError",
    "JacobianFrobenius",
    "Kinetic",
    "LocalError",
    "LocalStiffness",
    "ReleasedLocalError",
    "Stiffness",
    "TaylorDerivative",
    "TrajectoryPolynomial",
]
