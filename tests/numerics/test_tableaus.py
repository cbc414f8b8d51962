"""Tableaus: the order conditions, of the solution, the error estimate and the midpoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndeflow.numerics.tableaus import FIXED, PAIRS, Tableau


def conditions(tableau: Tableau, weights: tuple[float, ...], order: int, theta: float = 1.0) -> list[float]:
    """Residuals of the conditions that `weights` give y(t + theta h) to an order: Hairer et al., table II.2.2."""
    s = len(tableau.c)
    a = torch.tensor([[*row, *[0.0] * (s - len(row))] for row in tableau.a], dtype=torch.float64)
    b, c = (torch.tensor(x, dtype=torch.float64) for x in (weights, tableau.c))
    one = torch.ones(s, dtype=torch.float64)
    trees: list[tuple[int, Tensor, float]] = [
        (1, one, 1),
        (2, c, 2),
        (3, c**2, 3),
        (3, a @ c, 6),
        (4, c**3, 4),
        (4, c * (a @ c), 8),
        (4, a @ c**2, 12),
        (4, a @ (a @ c), 24),
        (5, c**4, 5),
        (5, c**2 * (a @ c), 10),
        (5, c * (a @ c**2), 15),
        (5, c * (a @ (a @ c)), 30),
        (5, (a @ c) ** 2, 20),
        (5, a @ c**3, 20),
        (5, a @ (c * (a @ c)), 40),
        (5, a @ (a @ c**2), 60),
        (5, a @ (a @ (a @ c)), 120),
    ]
    return [float(b @ phi) - theta**p / gamma for p, phi, gamma in trees if p <= order]


@pytest.mark.parametrize("name", [*PAIRS, *FIXED])
def test_solution_has_its_order(name):
    tableau = (PAIRS | FIXED)[name]
    assert max(map(abs, conditions(tableau, tableau.b, tableau.order))) < 1e-13
    for row, c in zip(tableau.a, tableau.c, strict=True):
        assert abs(sum(row) - c) < 1e-13


@pytest.mark.parametrize("name", PAIRS)
def test_embedded_method_has_its_order_and_no_more(name):
    tableau = PAIRS[name]
    other = tuple(b - e for b, e in zip(tableau.b, tableau.error, strict=True))
    assert max(map(abs, conditions(tableau, other, tableau.error_order))) < 1e-13
    assert max(map(abs, conditions(tableau, other, tableau.error_order + 1))) > 1e-5
    assert tableau.same_last and tableau.c[-1] == 1


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_midpoint_has_order_four(name):
    tableau = PAIRS[name]
    assert tableau.stiffness and tableau.c[-2] == 1
    assert max(map(abs, conditions(tableau, tableau.mid, 4, theta=0.5))) < 1e-12


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_stability_interval(method):
    """R(z) = 1 + z sum_i b_i k_i(z), k_i = 1 + z sum_j a_ij k_j, leaves [-1, 1] at z = -stability and not before."""

    def growth(z: float) -> float:
        tableau, ks = PAIRS[method], []
        for row in tableau.a:
            ks.append(1 + z * sum(a * k for a, k in zip(row, ks, strict=True)))
        return abs(1 + z * sum(b * k for b, k in zip(tableau.b, ks, strict=True)))

    end = PAIRS[method].stability
    assert all(growth(-end * n / 200) < 1 for n in range(1, 200))
    assert growth(-end) == pytest.approx(1.0, abs=1e-3) and growth(-1.01 * end) > 1.01
