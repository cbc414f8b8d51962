"""Reversible Heun: a step of an SDE that can be taken back exactly, for one evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ndeflow.numerics.stochastic import Terms

Carry = tuple[Tensor, Tensor, Tensor]
"""A second state, like z, and drift and diffusion there."""


def begin(sde: Terms, t: Tensor, z: Tensor, f: Tensor) -> Carry:
    """The carry at the start: z itself, f = drift(t, z), and the diffusion."""
    return z, f, sde.diffusion(t, z)


def advance(sde: Terms, t: Tensor, z: Tensor, h: Tensor, dw: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """z and its carry at t + h.

    v1 = 2 z - v + h f + g dW, f1 = drift(t + h, v1), g1 = diffusion(t + h, v1),
    z1 = z + h (f + f1) / 2 + (g + g1) dW / 2. Converges to Stratonovich's solution.
    Kidger, Foster, Li, Lyons 2021, "Efficient and accurate gradients for neural SDEs", algorithm 1.
    """
    second, f, g = carry
    second = 2 * z - second + h * f + sde.spread(g, dw)
    f1, g1 = sde.drift(t + h, second), sde.diffusion(t + h, second)
    return z + 0.5 * (h * (f + f1) + sde.spread(g + g1, dw)), (second, f1, g1)


def undo(sde: Terms, t: Tensor, z: Tensor, h: Tensor, dw: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """z and its carry at t, from those at t + h: `advance` solved for what it was given. There, algorithm 2."""
    second, f1, g1 = carry
    second = 2 * z - second - h * f1 - sde.spread(g1, dw)
    f, g = sde.drift(t, second), sde.diffusion(t, second)
    return z - 0.5 * (h * (f + f1) + sde.spread(g + g1, dw)), (second, f, g)
