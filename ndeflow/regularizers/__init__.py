"""Penalties and perturbations that make a model cheaper to solve, or hold it to an equation."""

from ndeflow.regularizers.collocation import NoisedPoints, UniformBox
from ndeflow.regularizers.cost import GlobalError, Stiffness
from ndeflow.regularizers.end_time import EndTimeJitter
from ndeflow.regularizers.fokker_planck import LogDensityResidual, ScoreResidual
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
    "LogDensityResidual",
    "NoisedPoints",
    "ScoreResidual",
    "Stiffness",
    "TaylorDerivative",
    "TrajectoryPolynomial",
    "UniformBox",
]
