"""Runge-Kutta tableaus: coefficients only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True)
class Tableau:
    """k_i = f(t + c_i h, y + h sum_j a_ij k_j), y1 = y + h sum_i b_i k_i.

    c, a: one entry a stage; row i of `a` has i entries. b: weights of the result; of a pair they equal the last
    row of `a` (first same as last). error: y1 - y1^ = h sum_i error_i k_i, None where there is no estimate; of
    order `error_order`, the order of the less accurate y1^. mid: y(t + h/2) ~ y + h sum_i mid_i k_i; None: the
    midpoint of the cubic Hermite interpolant. stiffness: the last two stages are both at t + h, so that Hairer's
    estimate of stiffness can be formed. stability: the length of its stability interval, the largest x such that
    |R(z)| <= 1 for all z in [-x, 0], R being the stability function; of pairs with the estimate.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    error_order: int = 0
    mid: tuple[float, ...] | None = None
    stiffness: bool = False
    stability: float = math.inf

    @property
    def same_last(self) -> bool:
        """First same as last: the last stage is f(t + h, y1)."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0

    @cached_property
    def inner(self) -> Tableau:
        """All stages but the last, which y1 of a pair does not need."""
        return replace(self, c=self.c[:-1], a=self.a[:-1])


EULER = Tableau(1, c=(0,), a=((),), b=(1,))

MIDPOINT = Tableau(2, c=(0, 1 / 2), a=((), (1 / 2,)), b=(0, 1))

# Kutta 1901
RK4 = Tableau(4, c=(0, 1 / 2, 1 / 2, 1), a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))

# Heun 1900 with Euler's method as the embedded one, and f(t + h, y1) added as a last stage
HEUN = Tableau(
    2,
    c=(0, 1, 1),
    a=((), (1,), (1 / 2, 1 / 2)),
    b=(1 / 2, 1 / 2, 0),
    error=(-1 / 2, 1 / 2, 0),
    error_order=1,
)

# Bogacki, Shampine 1989, "A 3(2) pair of Runge-Kutta formulas"
BOSH3 = Tableau(
    3,
    c=(0, 1 / 2, 3 / 4, 1),
    a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    error_order=2,
)

# Dormand, Prince 1980, "A family of embedded Runge-Kutta formulae"; the error estimate (two thirds of theirs) and
# the midpoint are those of Shampine 1986, "Some practical Runge-Kutta formulas"
DOPRI5 = Tableau(
    5,
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    error=(71 / 86400, 0, -142 / 50085, 71 / 2880, -5751 / 169600, 44 / 1575, -1 / 60),
    error_order=4,
    mid=(
        6025192743 / 30085553152 / 2,
        0,
        51252292925 / 65400821598 / 2,
        -2691868925 / 45128329728 / 2,
        187940372067 / 1594534317056 / 2,
        -1776094331 / 19743644256 / 2,
        11237099 / 235043384 / 2,
    ),
    stiffness=True,
    stability=3.3066,
)

# Tsitouras 2011, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption"; the
# midpoint is his free interpolant of order 4 at 1/2, which the quartic through it repeats everywhere
TSIT5 = Tableau(
    5,
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0,
    ),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    error_order=4,
    mid=(
        0.10741235230096871,
        0.01135625,
        0.39560903056045305,
        -0.34475214352593553,
        1.3161853649581645,
        -1.0170608542936508,
        0.031249999999999993,
    ),
    stiffness=True,
    stability=3.5068,
)

PAIRS = {"heun": HEUN, "bosh3": BOSH3, "dopri5": DOPRI5, "tsit5": TSIT5}
FIXED = {"euler": EULER, "midpoint": MIDPOINT, "rk4": RK4}
