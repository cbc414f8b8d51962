"""The stages of an explicit Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ndeflow.numerics.system import System
from ndeflow.numerics.tableaus import Tableau


def combine(weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor:
    """sum_i weights_i k_i over the weights that are not 0; at least one is not."""
    terms = [(w, k) for w, k in zip(weights, ks, strict=False) if w]
    total = terms[0][1] * terms[0][0]
    for w, k in terms[1:]:
        total = total.add(k, alpha=w)
    return total


def stages(
    system: System, tableau: Tableau, t: Tensor, z: Tensor, h: Tensor, k1: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """All k_i and the points g_i they were evaluated at; t and h in the real dtype of z.

    k1: f(t, z) where it is known already.
    """
    ks, points = [system(t, z) if k1 is None else k1], [z]
    at, c = t, 0.0
    for row, node in zip(tableau.a[1:], tableau.c[1:], strict=True):
        if node != c:
            at, c = t.add(h, alpha=node), node
        points.append(torch.addcmul(z, combine(row, ks), h))
        ks.append(system(at, points[-1]))
    return ks, points


def hermite_mid(z0: Tensor, z1: Tensor, h: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """The cubic Hermite interpolant halfway: (z0 + z1) / 2 + h (k0 - k1) / 8."""
    return torch.addcmul((z0 + z1) / 2, k0 - k1, h, value=1 / 8)
