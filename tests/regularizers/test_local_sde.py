"""One more step of an SDE, with noise of its own; its mean is the sum over steps where noise does not choose these."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from ndeflow.contracts import Output, Solved
from ndeflow.models import SDEClassifier
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE
from ndeflow.regularizers import GlobalError, LocalError, LocalStiffness
from tests.numerics.sdes import Growth, OrnsteinUhlenbeck, Waves
from tests.regularizers.fields import prepared

F64 = torch.float64
TS = torch.tensor([0.0, 1.0], dtype=F64)
LOOSE = AdaptiveStochastic(rtol=0.0, atol=1e3, compile="off")
"""Accepts every step, whatever the noise: the mesh is fixed."""
ROWS = 20_000


class Law(NamedTuple):
    """An SDE dz = a z dt + noise, and of Heun's step of size h from E z^2 = m: E z1^2 and E e^2, e the error."""

    sde: SDE
    after: Callable[[float, float], float]
    error: Callable[[float, float], float]


def additive() -> Law:
    """dz = -1.5 z dt + 0.7 dW, q = -1.5 h, s = 0.7 dW: z1 = (1 + q + q^2/2) z + (1 + q/2) s, e = (q^2 z + q s)/2."""

    def after(h, m):
        q, s = -1.5 * h, 0.49 * h
        return (1 + q + q * q / 2) ** 2 * m + (1 + q / 2) ** 2 * s

    return Law(OrnsteinUhlenbeck("ito"), after, lambda h, m: (q := -1.5 * h) * q / 4 * (q * q * m + 0.49 * h))


def multiplicative() -> Law:
    """dz = 0.3 z dt + 0.8 z dW in Stratonovich's sense: z1 = (1 + x + x^2 / 2) z, e = x^2 z / 2, x = 0.3 h + 0.8 dW."""

    def powers(h):
        a, v = 0.3 * h, 0.64 * h
        return a, a * a + v, a**3 + 3 * a * v, a**4 + 6 * a * a * v + 3 * v * v

    def after(h, m):
        x1, x2, x3, x4 = powers(h)
        return m * (1 + 2 * x1 + 2 * x2 + x3 + x4 / 4)

    return Law(Growth("stratonovich"), after, lambda h, m: m * powers(h)[3] / 4)


LAWS = {"additive": additive(), "multiplicative": multiplicative()}


@pytest.fixture(params=LAWS)
def law(request) -> Law:
    torch.manual_seed(0)
    return LAWS[request.param]


def summed(law: Law, steps: list[float]) -> float:
    """sum_j h_j sqrt(E e_j^2) / atol, from z = 1."""
    m, total = 1.0, 0.0
    for h in steps:
        total += h * math.sqrt(law.error(h, m)) / LOOSE.atol
        m = law.after(h, m)
    return total


def value(law: Law, regularizer, number: int = 0):
    with torch.no_grad():
        y0 = torch.ones(ROWS, 1, dtype=F64)
        return prepared(regularizer, law.sde, y0, TS, solver=LOOSE, noise=Brownian(number))


def test_on_a_fixed_mesh_the_biased_form_has_the_mean_of_the_global_error(law, drawn):
    """Over the steps, of so many rows that both are the closed form: a root mean square over rows is its limit."""
    whole, solution = value(law, GlobalError())
    steps = solution.stats.steps[0].tolist()
    want, count = summed(law, steps), len(steps)
    local = []
    for j in range(count):
        drawn((j + 0.5) / count)
        local.append(value(law, LocalError(sampling="biased"), number=j + 1)[0].item())
    assert count >= 4 and not solution.stats.rejected.any()
    assert whole.item() == pytest.approx(want, rel=0.04)
    assert sum(local) / count == pytest.approx(want, rel=0.04)


def test_on_a_fixed_mesh_the_unbiased_form_has_its_mean_over_times(law, drawn):
    """But for the state, which has gone on within the step: a few per cent."""
    _, solution = value(law, GlobalError())
    want, local = summed(law, solution.stats.steps[0].tolist()), []
    for k in range(32):
        drawn((k + 0.5) / 32)
        local.append(value(law, LocalError(), number=k)[0].item())
    assert sum(local) / 32 == pytest.approx(want, rel=0.08)


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_where_noise_chooses_the_steps_the_mean_is_above_that_of_accepted_ones(batching):
    """Attempts of much error were rejected, a step of noise of its own is none that was."""
    sde, y0, ts = Waves(), torch.linspace(-1, 1, 6, dtype=F64).view(2, 3), torch.tensor([0.0, 2.0], dtype=F64)
    solver = AdaptiveStochastic(rtol=3e-2, atol=3e-2, batching=batching, compile="off")
    torch.manual_seed(0)
    local, whole = [], []
    with torch.no_grad():
        for n in range(80):
            one, solution = prepared(LocalError(sampling="biased"), sde, y0, ts, solver=solver, noise=Brownian(n))
            local.append(one)
            solved = [Solved(solution, range(0), range(0))]
            whole.append(GlobalError().penalty(torch.nn.Identity(), Output(solution.ys), None, solved))
    local, whole = torch.stack(local), torch.stack(whole)
    assert whole.mean() < local.mean() < 1.5 * whole.mean()


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_local_stiffness_is_that_of_a_linear_drift(sampling):
    solver = AdaptiveStochastic(rtol=1e-2, atol=1e-2, compile="off")
    y0 = torch.ones(4, 1, dtype=F64)
    got, _ = prepared(LocalStiffness(sampling=sampling), Growth("ito"), y0, TS, solver=solver, noise=Brownian(0))
    assert abs(got.item() - 0.3 / 2) < 1e-6


def test_times_between_steps_that_rows_take_apart_are_refused_with_the_cure():
    model = SDEClassifier(2, 3, solver=AdaptiveStochastic(batching="per_sample"))
    for kind in (LocalError, LocalStiffness):
        kind(sampling="biased").check(model)
        with pytest.raises(ValueError, match="use sampling=biased, or batching=shared"):
            kind(sampling="unbiased").check(model)
