"""Stable SDEs: their closed forms, the bounds that dissipation promises, the signs that a geometric one keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ndeflow.fields.blind import Blind
from ndeflow.fields.dissipative import Dissipation
from ndeflow.fields.hidden import HiddenSDE
from ndeflow.fields.stable import Geometric, Langevin, LinearNoise
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import ByValue
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from tests.problems import apart

F64 = torch.float64
PATHS = 20_000
ZERO = torch.tensor(0.0, dtype=F64)


def constant(net: nn.Module, value: float) -> None:
    """Make a network's answer one number."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        last = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
        last.bias.fill_(value)


def with_constants(sde: HiddenSDE, sigma: float, gamma: float = 0.0) -> HiddenSDE:
    """sigma(t) = sigma and, of a geometric SDE, gamma = gamma; a dissipative drift is -rate z then."""
    s = math.log(math.expm1(sigma)) if sde.sigma.scale is None else math.log(sigma / (sde.sigma.scale - sigma))
    constant(sde.sigma, s)
    if isinstance(sde, Geometric):
        constant(sde.net, math.atanh(gamma / sde.bound))
    else:
        constant(sde.gamma, 0.0)
    return sde.double()


def paths(sde: nn.Module, y0: Tensor, times: Tensor, steps: int, context: object = None, seed: int = 1) -> Tensor:
    """States (B, T, d) of rows with their own noise, the same for every SDE and start."""
    return solve(sde, y0, times, solver=Stochastic(steps=steps), noise=Brownian(seed), context=context).ys.detach()


def ends(sde: HiddenSDE, z0: float, steps: int, end: float = 1.0) -> Tensor:
    """PATHS hidden states at the end, all from z0."""
    y0 = sde.state(torch.full((PATHS, 1), z0, dtype=F64))
    return sde.read(paths(sde, y0, torch.tensor([0.0, end], dtype=F64), steps))[:, -1]


def assert_mean(x: Tensor, expected: float, bias: float = 0.0) -> None:
    """Within four standard errors, and what the steps add."""
    assert abs(float(x.mean()) - expected) < 4 * float(x.std()) / math.sqrt(len(x)) + bias


def test_langevin_with_constants_is_an_ornstein_uhlenbeck_process():
    z = ends(with_constants(Langevin(1, width=2, dissipation=Dissipation(1.5, 0.5)), sigma=0.8), z0=2.0, steps=64)
    variance = 0.64 * (1 - math.exp(-3.0)) / 3.0
    assert_mean(z, 2.0 * math.exp(-1.5), bias=0.01)
    assert float(z.var()) == pytest.approx(variance, rel=0.05)


def test_moments_of_linear_noise_with_constants():
    sde = with_constants(LinearNoise(1, width=2, scale=0.9, dissipation=Dissipation(1.0, 0.5)), sigma=0.8)
    z = ends(sde, z0=2.0, steps=64)
    assert_mean(z, 2.0 * math.exp(-1.0), bias=0.005)
    assert_mean(z.square(), 4.0 * math.exp(0.64 - 2.0), bias=0.02)


@pytest.mark.parametrize(("log_state", "steps"), [(True, 1), (False, 64)])
def test_log_moments_of_a_geometric_sde_with_constants(log_state, steps):
    sde = with_constants(Geometric(1, width=2, bound=2.0, log_state=log_state), sigma=0.7, gamma=0.4)
    z = ends(sde, z0=-1.5, steps=steps)
    assert (z < 0).all()
    logs = (z / -1.5).log()
    assert_mean(logs, 0.4 - 0.245, bias=0.0 if log_state else 0.01)
    assert float(logs.var()) == pytest.approx(0.49, rel=0.05)
    assert_mean(z, -1.5 * math.exp(0.4), bias=0.01)


def test_log_states_keep_signs_that_steps_of_the_state_lose():
    lost = {}
    for log_state in (False, True):
        z = ends(with_constants(Geometric(1, width=2, log_state=log_state), sigma=2.0), z0=1.0, steps=10)
        lost[log_state] = float((z < 0).double().mean())
    assert lost[False] == pytest.approx(0.35, abs=0.03) and lost[True] == 0.0


def test_a_log_state_stands_for_signs_and_zero():
    torch.manual_seed(0)
    sde, z = Geometric(3, log_state=True).double(), torch.tensor([[-2.0, 0.0, 0.5], [1.0, -1e-30, 3e8]], dtype=F64)
    torch.testing.assert_close(sde.read(sde.state(z)), z, rtol=1e-12, atol=0)
    later = sde.read(paths(sde, sde.state(z), torch.tensor([0.0, 3.0], dtype=F64), 30))
    assert torch.equal(later.sign(), z.sign()[:, None].expand_as(later))
    assert (later[:, -1] != z)[z != 0].all()


def test_both_geometric_coordinates_have_the_same_solution():
    torch.manual_seed(0)
    plain, logs = Geometric(1, width=8), Geometric(1, width=8, log_state=True)
    logs.load_state_dict(plain.state_dict())
    found = [ends(sde.double(), 0.8, 64) for sde in (plain, logs)]
    assert float(found[0].mean()) == pytest.approx(float(found[1].mean()), abs=0.02)
    assert float(found[0].std()) == pytest.approx(float(found[1].std()), rel=0.05)


def wild(cls: type[HiddenSDE], **options: object) -> HiddenSDE:
    """An SDE after optimizer steps that make its drift as steep as they can."""
    torch.manual_seed(0)
    sde = cls(4, inputs=2, width=16, **options).double()
    optimizer = torch.optim.Adam(sde.parameters(), lr=0.5)
    z, other, x = torch.randn(50, 4, dtype=F64), torch.randn(50, 4, dtype=F64), torch.randn(50, 2, dtype=F64)
    for _ in range(8):
        optimizer.zero_grad()
        steep = sde.drift(ZERO, z, x) - sde.drift(ZERO, other, x)
        (-(steep * (z - other)).sum(dim=1).mean()).backward()
        optimizer.step()
    return sde


def control(seed: int, rows: int, times: Tensor) -> Linear:
    """Paths (B) of two channels through random values at the times."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, len(times), 2, generator=generator, dtype=F64)
    return Linear.through(times.expand(rows, -1), values, torch.ones_like(values, dtype=torch.bool))


def starts(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, rows, 4, dtype=F64, generator=torch.Generator().manual_seed(2)).unbind()


DISSIPATION = Dissipation(rate=2.0, lipschitz=1.2)
TIMES = torch.linspace(0, 2, 9, dtype=F64)


def langevin_gaps(sde: HiddenSDE, other: int = 3, steps: int = 50, rows: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """|z - z'| (B, T) at TIMES, |x - x'| (B, N) at N fine times, and these, under the same Brownian motions."""
    xs = [control(seed, rows, TIMES) for seed in (3, other)]
    found = [paths(ByValue(sde), z0, TIMES, steps, x) for z0, x in zip(starts(rows), xs, strict=True)]
    fine = torch.linspace(0, 2, 801, dtype=F64)
    distances = torch.stack([(xs[0].value(t) - xs[1].value(t)).norm(dim=-1) for t in fine], dim=1)
    return (found[0] - found[1]).norm(dim=-1), distances, fine


@pytest.mark.parametrize("steps", [1, 50])  # of h rate = 0.5 and less
def test_langevin_paths_draw_together_on_every_path_at_all_times(steps):
    gaps, _, _ = langevin_gaps(wild(Langevin, dissipation=DISSIPATION), steps=steps)
    bound = torch.exp(-DISSIPATION.contraction * TIMES) * gaps[:, :1]
    assert (gaps <= bound * (1 + 1e-12)).all() and (gaps[:, -1] > 0.01 * bound[:, -1]).all()
    free, _, _ = langevin_gaps(wild(Langevin), steps=steps)
    assert (free[:, -1] > bound[:, -1]).all()


def test_langevin_paths_of_other_control_paths_stay_as_near_as_these():
    gaps, distances, fine = langevin_gaps(wild(Langevin, dissipation=DISSIPATION), other=4)
    k, weight = DISSIPATION.contraction, DISSIPATION.lipschitz * distances
    for n, end in enumerate(TIMES):
        inside = fine <= end
        decayed = torch.exp(-k * (end - fine[inside])) * weight[:, inside]
        bound = torch.exp(-k * end) * gaps[:, 0] + torch.trapezoid(decayed, fine[inside], dim=1)
        assert (gaps[:, n] <= 1.01 * bound).all()
        assert not n or (gaps[:, n] > torch.exp(-k * end) * gaps[:, 0]).any()  # the second term is needed


def test_linear_noise_draws_together_in_mean_square():
    scale = 0.9 * math.sqrt(2 * DISSIPATION.contraction)
    sde = wild(LinearNoise, scale=scale, dissipation=DISSIPATION)
    rows = 1000
    (a, b), x = starts(1), control(3, rows, TIMES)
    found = [paths(ByValue(sde), z0.expand(rows, -1), TIMES, 50, x) for z0 in (a, b)]
    squares = (found[0] - found[1]).square().sum(dim=-1).mean(dim=0)
    bound = torch.exp(-(2 * DISSIPATION.contraction - scale**2) * TIMES) * squares[0]
    assert (squares <= bound * (1 + 1e-12)).all()


def test_too_much_linear_noise_tears_apart_in_mean_square():
    """Why the scale is bounded: 2 K < sigma^2, and a pair whose typical gap shrinks has a mean square that grows."""
    sde = LinearNoise(1, width=2, scale=1.0, dissipation=Dissipation(1.0, 0.1))
    constant(sde.gamma, 0.0)
    sde.sigma.scale = 4.0
    constant(sde.sigma, 0.0)
    z = ends(sde.double(), z0=1.0, steps=64)  # the gap of two linear solutions is a solution itself
    assert float(z.square().mean()) > 3 and float(z.abs().median()) < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dissipation(1.0, 1.0), "expected 0 < lipschitz < rate"),
        (lambda: Dissipation(1.0, -0.1), "expected 0 < lipschitz < rate"),
        (lambda: LinearNoise(2, dissipation=Dissipation()), "expected a scale of sigma below sqrt"),
        (lambda: LinearNoise(2, scale=1.5, dissipation=Dissipation(2.0, 1.0)), "= 1.414, got 1.5; .*larger rate"),
        (lambda: Langevin(2, dissipation=Dissipation(), released=True), "expected a dissipation or released"),
        (lambda: Langevin(2, scale=1.0, released=True), "expected no scale with released"),
        (lambda: Langevin(2, scale=0.0), "expected a positive scale of sigma"),
        (lambda: Geometric(2, bound=math.inf), "expected a positive, finite bound of gamma"),
        (lambda: Geometric(2, bound=0.0), "expected a positive, finite bound of gamma"),
        (lambda: Geometric(2, log_state=True, released=True), "expected log_state or released"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_the_cure(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_langevin_may_have_any_noise_and_linear_noise_less_than_its_limit():
    Langevin(2, scale=9.0, dissipation=Dissipation(2.0, 1.0))
    LinearNoise(2, scale=1.41, dissipation=Dissipation(2.0, 1.0))


@pytest.mark.parametrize("cls", [Langevin, LinearNoise, Geometric])
def test_sigma_is_positive_where_a_released_one_can_die(cls):
    torch.manual_seed(0)
    t, z = torch.tensor(0.5), torch.ones(3, 2)
    alive, dead = cls(2), cls(2, released=True)
    for sde in (alive, dead):
        constant(sde.sigma, -5.0)
    assert (alive.diffusion(t, z) > 0).all() and not dead.diffusion(t, z).any()


@pytest.mark.parametrize("cls", [Langevin, LinearNoise, Geometric])
def test_released_drift_and_diffusion_are_those_of_the_published_code(cls):
    torch.manual_seed(0)
    sde, t, z = cls(2, released=True), torch.tensor(0.5), 3 * torch.randn(50, 2)
    net = sde.net if cls is Geometric else sde.gamma
    s = sde.sigma.net(torch.full((50, 1), 0.5)).relu() / (1 + math.exp(-1.0))
    m = net(t, z)
    torch.testing.assert_close(sde.drift(t, z), (m * z.tanh() if cls is Geometric else m).tanh())
    torch.testing.assert_close(sde.diffusion(t, z), (s if cls is Langevin else s * z).tanh())


def test_langevin_does_not_see_time_and_linear_noise_does():
    torch.manual_seed(0)
    y, early, late = torch.randn(5, 3), torch.tensor(0.0), torch.tensor(2.0)
    langevin, linear = Langevin(3), LinearNoise(3)
    assert langevin.drift(early, y).equal(langevin.drift(late, y))
    assert not linear.drift(early, y).equal(linear.drift(late, y))


def test_a_blind_sde_does_not_see_the_path_and_takes_the_same_steps():
    torch.manual_seed(0)
    sde, (z0, _) = LinearNoise(4).double(), starts(5)
    one, other = (solve(Blind(sde), z0, TIMES, solver=Stochastic(), noise=Brownian(1), context=control(s, 5, TIMES))
                  for s in (3, 4))  # fmt: skip
    assert torch.equal(one.ys, other.ys) and one.stats.nfe.tolist() == [8] * 5
    seeing = [paths(ByValue(wild(LinearNoise)), z0, TIMES, 1, control(s, 5, TIMES)) for s in (3, 4)]
    assert apart(*seeing) > 1e-3
