"""Penalties and perturbations that make a model cheaper to solve."""

from ndeflow.regularizers.cost import GlobalError
from ndeflow.regularizers.end_time import EndTimeJitter

__all__ = ["EndTimeJitter", "GlobalError"]
