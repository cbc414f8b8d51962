"""Tasks: what a model is trained for."""

from ndeflow.tasks.adversarial import Adversarial
from ndeflow.tasks.base import Task
from ndeflow.tasks.denoising import DenoisingScoreMatching
from ndeflow.tasks.density import DensityEstimation
from ndeflow.tasks.losses import CRPS, GaussianNLL, LogSquaredError, SquaredError
from ndeflow.tasks.moments import MomentMatching
from ndeflow.tasks.series import Classification, Forecasting, Interpolation, Regression
from ndeflow.tasks.variational import Variational

__all__ = [
    "Adversarial",
    "CRPS",
    "Classification",
    "DenoisingScoreMatching",
    "DensityEstimation",
    "Forecasting",
    "GaussianNLL",
    "Interpolation",
    "LogSquaredError",
    "MomentMatching",
    "Regression",
    "SquaredError",
    "Task",
    "Variational",
]
