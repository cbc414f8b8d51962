"""TorchSDE: equal to our own methods on the same noise, to torchsde itself, and exact in the law of its areas."""

from __future__ import annotations

import math

import pytest
import torch
import torchsde
from torch import nn

from ndeflow.contracts import Problem
from ndeflow.numerics.backends import TORCHSDE, Increments, TorchSDE
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.field import NOISE_TYPES, SDE, SDE_TYPES, ByValue
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.stochastic import SCHEMES, Stochastic
from tests.numerics.sdes import Waves, tensor

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Named(nn.Module):
    """An SDE under the names torchsde calls."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde, self.noise_type, self.sde_type = sde, sde.noise_type, sde.sde_type

    def f(self, t, y):
        return self.sde.drift(t, y)

    def g(self, t, y):
        return self.sde.diffusion(t, y)


def sde(noise_type: str = "diagonal", sde_type: str = "ito", **changes) -> Problem:
    return Problem(**({"field": Waves(noise_type, sde_type), "y0": torch.randn(4, 3, dtype=F64),
                       "ts": tensor(0.0, 0.5, 1.0, 1.2), "noise": Brownian(3)} | changes))  # fmt: skip


def serves(method: str, sde_type: str, noise_type: str) -> bool:
    kind = TORCHSDE[method]
    return noise_type in kind.noises and (sde_type in kind.calculi or noise_type == "additive")


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("sde_type", SDE_TYPES)
@pytest.mark.parametrize("method", SCHEMES)
def test_our_method_is_torchsdes_on_the_same_noise(method, sde_type, noise_type):
    if not serves(method, sde_type, noise_type) or noise_type not in SCHEMES[method].orders:
        with pytest.raises(ValueError, match="use"):
            Stochastic(method).integrate(sde(noise_type, sde_type))
        return
    ends = (
        (1.0, 1.5) if method == "reversible_heun" else (1.0, 1.2)
    )  # torchsde's pair starts anew where spacing changes
    y0 = torch.randn(4, 3, dtype=F64, requires_grad=True)
    problem = sde(noise_type, sde_type, y0=y0, ts=tensor(0.0, 0.5, *ends))
    inputs = [problem.y0, *problem.field.parameters()]
    results = []
    for solver in (Stochastic(method, 4), TorchSDE(method, 4, options={"grad_free": True})):
        solution = solver.integrate(problem)
        results.append((solution.ys, *torch.autograd.grad(solution.ys.square().sum(), inputs)))
        assert solution.stats.accepted.tolist() == [12] * 4
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [m for m in TORCHSDE if m not in ("srk", "log_ode")])
def test_torchsde_gives_the_numbers_it_gives_in_real_time(method):
    sde_type = TORCHSDE[method].calculi[0]
    problem = sde("diagonal", sde_type, ts=tensor(0.0, 0.5, 1.0))

    class Noise:
        shape, dtype, device, levy_area_approximation = (4, 3), F64, torch.device("cpu"), "none"

        def __call__(self, ta, tb, **_):
            n, h = round(float(ta) / 0.125), 0.125
            return math.sqrt(h) * problem.noise.normals(n, 1, 3, batch=4, dtype=F64, device=self.device)[0]

    ys = torchsde.sdeint(Named(problem.field), problem.y0, problem.ts, bm=Noise(), method=method, dt=0.125)
    solution = TorchSDE(method, 4).integrate(problem)
    torch.testing.assert_close(solution.ys, ys.transpose(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("sde_type", SDE_TYPES)
@pytest.mark.parametrize("method", [*TORCHSDE, None])
def test_every_method_of_torchsde_converges_to_our_solution_or_is_refused_with_the_cure(method, sde_type, noise_type):
    class Still(Brownian):
        """One large step's noise, spread evenly: all methods then approach one ordinary equation."""

        def normals(self, first_step, count, size, *, batch, dtype, device):
            normals = torch.zeros(count, batch, size, dtype=dtype, device=device)
            normals[..., :sde_size] = 0.3 / math.sqrt(steps)
            return normals

    sde_size = Waves(noise_type).noise_size
    problem = sde(noise_type, sde_type, noise=Still(0), ts=tensor(0.0, 1.0))
    if method is not None and not serves(method, sde_type, noise_type):
        with pytest.raises(ValueError, match=r'use TorchSDE\("') as refusal:
            TorchSDE(method).integrate(problem)
        method = str(refusal.value).split('TorchSDE("')[1].split('"')[0]
    steps = 40
    ys = TorchSDE(method, steps).integrate(problem).ys
    assert ys.shape == (4, 2, 3) and ys.isfinite().all()
    if sde_type == "stratonovich":
        steps = 400
        fine = Stochastic("heun", steps).integrate(problem).ys
        torch.testing.assert_close(ys, fine, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("method", "order"), [("srk", 1.5), ("euler", 0.5)])
def test_torchsdes_strong_order_with_our_levy_areas(method, order):
    class Growth(SDE):
        def __init__(self) -> None:
            super().__init__(noise_type="diagonal", sde_type="ito", noise_size=1)

        def drift(self, t, y):
            return 0.3 * y

        def diffusion(self, t, y):
            return 0.8 * y

    class Coarse(Brownian):
        """Increments and space-time areas of the paths that fine steps make, in steps `ratio` times as long."""

        def normals(self, first_step, count, size, *, batch, dtype, device):
            fine = super().normals(first_step * ratio, count * ratio, 1, batch=batch, dtype=dtype, device=device)
            fine = fine.unflatten(0, (count, ratio)) / math.sqrt(ratio)
            w = fine.sum(dim=1)
            area = (fine.cumsum(dim=1) - 0.5 * fine).mean(dim=1) - 0.5 * w
            return torch.cat([w, math.sqrt(12.0) * area], dim=-1)[..., :size]

    rows, fine = 400, 2**11
    total = Brownian(5).normals(0, fine, 1, batch=rows, dtype=F64, device=torch.device("cpu")).sum(dim=0)
    exact = torch.exp(0.3 - 0.32 + 0.8 * total / math.sqrt(fine))
    errors, y0 = [], torch.ones(rows, 1, dtype=F64)
    ratios = (512, 256, 128, 64)
    for ratio in ratios:  # noqa: B007
        problem = Problem(Growth(), y0, tensor(0.0, 1.0), noise=Coarse(5))
        ys = TorchSDE(method, fine // ratio).integrate(problem).ys
        errors.append((ys[:, -1] - exact).square().mean().sqrt().log2())
    x, e = torch.tensor(ratios, dtype=F64).log2(), torch.stack(errors)
    slope = ((x - x.mean()) * (e - e.mean())).sum() / (x - x.mean()).square().sum()
    assert abs(slope - order) < 0.25


def test_levy_areas_have_their_moments():
    class Two(Waves):
        def __init__(self) -> None:
            super().__init__("general", "stratonovich")

    rows = 40_000
    problem = sde(field=Two(), y0=torch.zeros(rows, 3, dtype=F64))
    system = TorchSDE("log_ode").system(problem)
    w, u, a = Increments(system, problem.y0, 0, "foster")(0.0, 1.0, return_U=True, return_A=True)
    tolerance = 5 / math.sqrt(rows)
    assert abs(w.var() - 1) < tolerance and abs(u.var() - 1 / 3) < tolerance
    assert abs((u * w).mean() - 1 / 2) < tolerance
    assert torch.equal(a, -a.mT)
    assert abs(a[:, 0, 1].var() - 1 / 4) < tolerance and abs(a[:, 0, 1].mean()) < tolerance
    second = Increments(system, problem.y0, 1, "foster")(0.0, 1.0, return_A=True)[1]
    assert abs((second * a)[:, 0, 1].mean()) < tolerance


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_torchsdes_adjoint_approaches_the_exact_gradient(noise_type, sde_type):
    context = torch.randn(4, 3, dtype=F64, requires_grad=True)
    y0 = torch.randn(4, 3, dtype=F64, requires_grad=True)
    method = "midpoint" if sde_type == "stratonovich" else "euler" if noise_type == "general" else "srk"

    def gradients(steps, adjoint):
        problem = sde(noise_type, sde_type, y0=y0, context=2 * context, ts=tensor(0.0, 0.2, 0.4))
        solver = TorchSDE(method, steps)
        solution = solver.integrate_adjoint(problem, True) if adjoint else solver.integrate(problem)
        found = torch.autograd.grad(solution.ys.square().sum(), [y0, context, *problem.field.parameters()])
        assert solution.stats.backward_nfe[0] > 0 or not adjoint
        return torch.cat([g.flatten() for g in found])

    exact = gradients(128, False)
    assert (gradients(128, True) - exact).norm() < 0.05 * exact.norm()


def test_torchsdes_reversible_heun_has_an_exact_adjoint():
    problem = sde("general", "stratonovich", y0=torch.randn(4, 3, dtype=F64, requires_grad=True))
    inputs, solver = [problem.y0, *problem.field.parameters()], TorchSDE("reversible_heun", 3)
    exact, adjoint = (
        torch.autograd.grad(solution.ys.square().sum(), inputs)
        for solution in (solver.integrate(problem), solver.integrate_adjoint(problem, True))
    )
    torch.testing.assert_close(adjoint, exact, rtol=1e-10, atol=1e-10)


def test_integrals_path_and_probes_under_torchsde():
    class Followed(Waves):
        def drift(self, t, y, *context):
            return context[0][:, :3] - y

    class Weighted(Integrand):
        def forward(self, at, own):
            return at.y.square().sum(dim=1)

    knots = tensor(0.0, 0.3, 1.0, 2.0)
    path, y0 = Linear.through(knots, torch.randn(4, 4, 3, dtype=F64)), torch.randn(4, 3, dtype=F64)
    for noise_type in NOISE_TYPES:
        problem = Problem(ByValue(Followed(noise_type)), y0, knots, path, ((Weighted(), None),), Brownian(3))
        problem = problem.with_probes(tensor(0.4, 1.7))
        ours, theirs = (solver.integrate(problem) for solver in (Stochastic("euler", 2), TorchSDE("euler", 2)))
        torch.testing.assert_close(theirs.ys, ours.ys, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(theirs.integrals, ours.integrals, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(theirs.stats.times, ours.stats.times)
        torch.testing.assert_close(theirs.stats.steps, ours.stats.steps)


def test_torchsde_gradients_of_times_and_empty_intervals():
    ts = tensor(0.0, 0.5, 0.5, 1.0).requires_grad_()
    results = []
    problem = sde(ts=ts)
    for solver in (Stochastic("euler", 2), TorchSDE("euler", 2)):
        ys = solver.integrate(problem).ys
        results.append((ys, torch.autograd.grad(ys[:, [1, 3]].square().sum(), ts)[0]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise_type", ["additive", "diagonal"])
def test_adaptive_torchsde_is_near_the_fine_solution_in_law_and_repeats(noise_type):
    problem = sde(noise_type, "stratonovich", y0=torch.zeros(300, 3, dtype=F64), ts=tensor(0.0, 1.0))
    solver = TorchSDE("midpoint", 4, adaptive=True, rtol=1e-3, atol=1e-3)
    ys = solver.integrate(problem).ys[:, 1]
    assert torch.equal(ys, solver.integrate(problem).ys[:, 1])
    fine = Stochastic("midpoint", 64).integrate(problem).ys[:, 1]
    assert ((ys.mean(dim=0) - fine.mean(dim=0)).abs() < 5 * fine.std(dim=0) * math.sqrt(2 / 300)).all()
    assert (ys.std(dim=0) / fine.std(dim=0) - 1).abs().max() < 0.3
