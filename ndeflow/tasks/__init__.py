"""Tasks: what a model is trained for."""

from ndeflow.tasks.base import Task
from ndeflow.tasks.losses import CRPS, LogSquaredError, SquaredError
from ndeflow.tasks.series import Classification, Forecasting, Interpolation, Regression
from ndeflow.tasks.variational import Variational

__all__ = [
    "CRPS",
    "Classification",
    "Forecasting",
    "Interpolation",
    "LogSquaredError",
    "Regression",
    "SquaredError",
    "Task",
    "Variational",
]
