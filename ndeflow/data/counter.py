"""Random numbers without a generator: pure functions of a seed and of integer coordinates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ndeflow.numerics.seeds import mix

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, *coordinates: Tensor) -> Tensor:
    """Uniform in [0, 1), float64, of the coordinates' broadcast shape; alike in every process and batch.

    Each coordinate (integers) passes once through the SplitMix64 step (Steele, Lea and Flood 2014).
    """
    state = np.array([mix(seed)], dtype=np.uint64)
    for coordinate in coordinates:
        state = scrambled(state + GOLDEN + coordinate.numpy().astype(np.uint64))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) / 2.0**53)


def scrambled(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finalizer, a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
