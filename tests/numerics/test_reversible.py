"""Reversible: gradients of the discrete solve in constant memory, or a refusal."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import Tensor, nn

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.solve import pose, solve
from ndeflow.numerics.stochastic import Stochastic
from tests.numerics.test_coupled import coupled
from tests.problems import Conditions, Driven, Mixed, Net, apart, start

TS = torch.tensor([0.0, 0.3, 0.7, 1.5], dtype=torch.float64)
PADDED = torch.stack([TS, TS / 2, torch.zeros(4, dtype=torch.float64)])
SOLVERS = [
    RungeKutta("heun", 1e-3, 1e-3),
    RungeKutta("bosh3"),
    RungeKutta("dopri5", 1e-7, 1e-7),
    RungeKutta("tsit5", 1e-5, 1e-5),
    FixedRungeKutta("euler", 3),
    FixedRungeKutta("midpoint", 2),
    FixedRungeKutta("rk4", 2),
]


def values(solution) -> Tensor:
    """A loss that reads all states and integrals."""
    return solution.ys.sin().sum() + solution.integrals.square().sum()


@pytest.mark.parametrize("ts", [TS, PADDED, TS.flip(0)], ids=["shared", "rows", "backward"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.method)
def test_gradients_are_those_of_autograd_through_the_same_steps(solver, ts):
    """States, parameters, times and integrands' own at once."""
    field, mixed = Net(), Mixed()
    y0, times = start().requires_grad_(), ts.clone().requires_grad_()
    own = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    inputs = [y0, times, own, mixed.weight, *field.parameters()]
    recorded = coupled(solver, 0.9, field, y0, times, integrands=[(mixed, own)])
    found = solve(field, y0, times, solver=solver, adjoint=Reversible(0.9), integrands=[(mixed, own)])
    assert torch.equal(found.ys, recorded.ys) and torch.equal(found.integrals, recorded.integrals)
    grads = [torch.autograd.grad(values(s), inputs) for s in (found, recorded)]
    for a, b in zip(*grads, strict=True):
        assert a.isfinite().all() and apart(a, b) < 1e-10


@pytest.mark.parametrize("ts", [TS[[0, 3]], TS[:1], TS[[0, 0, 2, 2]]], ids=["end", "start", "repeated"])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5"), FixedRungeKutta("rk4", 20)], ids=lambda s: s.method)
def test_states_at_the_ends_of_steps(solver, ts):
    field, y0 = Net(), start().requires_grad_()
    inputs = [y0, *field.parameters()] if len(ts) > 1 else [y0]
    found = solve(field, y0, ts, solver=solver, adjoint=Reversible())
    grads = [torch.autograd.grad(values(s), inputs) for s in (found, coupled(solver, 0.999, field, y0, ts))]
    assert all(apart(a, b) < 1e-10 for a, b in zip(*grads, strict=True))


def test_a_probe_between_steps_is_differentiated():
    field, y0 = Net(), start().requires_grad_()
    probes = torch.tensor([0.11, 1.2], dtype=torch.float64, requires_grad=True)
    for solver in (RungeKutta("dopri5"), FixedRungeKutta("rk4", 2)):
        found = Reversible(0.99)(solver, pose(field, y0, TS).with_probes(probes)).ys[:, -2:]
        recorded = coupled(solver, 0.99, field, y0, TS, probes=probes).ys[:, -2:]
        inputs = [y0, probes, *field.parameters()]
        grads = [torch.autograd.grad(ys.sin().sum(), inputs) for ys in (found, recorded)]
        assert all(apart(a, b) < 1e-10 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5"), FixedRungeKutta("rk4", 2)], ids=lambda s: s.method)
def test_context_and_control_path(solver, rows):
    knots = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    knots = torch.stack([knots, knots / 2, knots.clamp(max=0.2)]) if rows else knots
    xs = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    gain, field, y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True), Driven(), start().requires_grad_()
    context = Conditions(Hermite.through(knots, xs), gain)
    recorded = coupled(solver, 0.95, field, y0, knots, context=context)
    found = solve(field, y0, knots, solver=solver, adjoint=Reversible(0.95), context=context)
    inputs = [y0, xs, gain, field.weight]
    grads = [torch.autograd.grad(values(s), inputs, retain_graph=True) for s in (found, recorded)]
    for a, b in zip(*grads, strict=True):
        assert b.abs().max() > 0 and apart(a, b) < 1e-10


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3 + 2.0j, dtype=torch.complex128))

    def forward(self, t, y):
        return self.rate * y * torch.cos(y.abs())


def test_complex_states():
    field, y0 = Turning(), torch.view_as_complex(start(3, 2)).requires_grad_()
    found = solve(field, y0, TS, adjoint=Reversible())
    recorded = coupled(RungeKutta(), 0.999, field, y0, TS)
    grads = [torch.autograd.grad(s.ys.abs().sin().sum(), [y0, field.rate]) for s in (found, recorded)]
    assert all(apart(a, b) < 1e-10 for a, b in zip(*grads, strict=True))


def test_the_gradient_stays_exact_over_many_steps():
    field, y0, ts = Net(), start().requires_grad_(), TS[[0, 3]]
    solver, inputs = FixedRungeKutta("midpoint", 300), [y0, *field.parameters()]
    recorded = coupled(solver, 0.98, field, y0, ts)
    found = solve(field, y0, ts, solver=solver, adjoint=Reversible(0.98))
    grads = [torch.autograd.grad(values(s), inputs) for s in (found, recorded)]
    assert all(apart(a, b) < 1e-8 for a, b in zip(*grads, strict=True))


def live() -> list[Tensor]:
    """All tensors that anything refers to, those without memory that a trace has left aside."""
    gc.collect()
    return [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]


def sizes(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes of their storages, by address."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


@pytest.mark.parametrize("ts", [TS[[0, 3]], TS], ids=["end", "dense"])
def test_memory_between_the_passes_does_not_grow_with_the_steps(ts):
    field, y0 = Net(), start().requires_grad_()
    kept, saved = [], []
    solve(field, start(), ts, solver=FixedRungeKutta("euler"))  # what is kept of a span is there by now

    def pack(x: Tensor) -> Tensor:
        saved[-1] += x.numel() * x.element_size()
        return x

    for steps in (10, 1000):
        solver, before = FixedRungeKutta("euler", steps), live()  # held, so that no other test's leave in between
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            ys = solve(field, y0, ts, solver=solver, adjoint=Reversible()).ys
        old = sizes(before)
        kept.append(sum(size for place, size in sizes(live()).items() if place not in old))
        ys.sum().backward()
        del ys, before
    assert saved[0] == saved[1] > 0 and 0 < kept[1] == kept[0] < 4000


def test_evaluations_of_the_backward_pass_are_counted():
    """Two steps of the method a step: no more than the forward pass."""
    field = Net()
    found = solve(field, start(), TS[[0, 3]], adjoint=Reversible())
    forward = field.calls
    assert found.stats.backward_nfe == [0] and forward == found.stats.nfe[0]
    found.ys.sum().backward()
    assert found.stats.backward_nfe == [field.calls - forward] == [14 * int(found.stats.accepted[0])]


def test_parameters_that_are_not_used_get_no_gradient():
    field = Net()
    field.spare = nn.Parameter(torch.ones(1, dtype=torch.float64))
    field.net[0].bias.requires_grad_(False)
    solve(field, start(), TS, adjoint=Reversible()).ys[:, 1].sum().backward()
    assert field.spare.grad is None and field.net[0].bias.grad is None
    assert field.net[0].weight.grad.abs().max() > 0


def test_without_gradients_the_values_are_the_same():
    field = Net()
    with torch.no_grad():
        plain = solve(field, start(), TS, adjoint=Reversible())
    found = solve(field, start(), TS, adjoint=Reversible())
    assert torch.equal(plain.ys, found.ys) and not plain.ys.requires_grad
    assert found.ys.requires_grad and not found.stats.error.requires_grad


def test_autocast_of_the_forward_pass_holds_in_the_backward_pass():
    field, y0 = Net(dtype=torch.float32), start(dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = values(solve(field, y0, TS, adjoint=Reversible(), solver=FixedRungeKutta("rk4", 4)))
    found = torch.autograd.grad(loss, list(field.parameters()))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        recorded = values(coupled(FixedRungeKutta("rk4", 4), 0.999, field, y0, TS))
    wanted = torch.autograd.grad(recorded, list(field.parameters()))
    assert all(apart(a, b) < 1e-2 for a, b in zip(found, wanted, strict=True))


class Walk(SDE):
    def drift(self, t, y):
        return -y

    def diffusion(self, t, y):
        return torch.ones_like(y)


def test_what_does_not_fit_is_refused_with_the_cure():
    for coupling in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"coupling in \(0, 1\]"):
            Reversible(coupling)
    walk = Walk(noise_type="diagonal", sde_type="ito", noise_size=2)
    with pytest.raises(ValueError, match=r"expected Stochastic\('reversible_heun'\) .* or Checkpointed\(\)"):
        solve(walk, start(), TS, adjoint=Reversible())
    with pytest.raises(ValueError, match=r"expected RungeKutta or FixedRungeKutta .* got Stochastic; use Checkpointed"):
        solve(Net(), start(), TS, adjoint=Reversible(), solver=Stochastic())
    with pytest.raises(ValueError, match="got per_sample; use shared, or Checkpointed"):
        solve(Net(), start(), TS, adjoint=Reversible(), solver=RungeKutta(batching="per_sample"))
    with pytest.raises(ValueError, match="got compile=on; leave it auto"):
        solve(Net(), start(), TS, adjoint=Reversible(), solver=RungeKutta(compile="on"))
    with pytest.raises(ValueError, match=r"nn\.Module.*wrap.*Direct"):
        solve(lambda t, y: y, start(), TS, adjoint=Reversible())


@pytest.mark.parametrize(("dtype", "steps", "coupling"), [(torch.float64, 180, 0.9), (torch.float32, 80, 0.9)])
def test_steps_that_rounding_would_spoil_are_refused(dtype, steps, coupling):
    field, ts = Net(dtype=dtype), TS[[0, 3]].to(dtype)

    def run(count):
        return solve(
            field, start(dtype=dtype), ts, solver=FixedRungeKutta("euler", count), adjoint=Reversible(coupling)
        )

    with pytest.raises(SolveError, match=rf"{steps} steps cannot be taken back .* Checkpointed\(\), or float64, or a"):
        run(steps)
    with torch.no_grad():
        run(steps)
    run(steps // 2).ys.sum().backward()


class Pulled(nn.Module):
    """A fast contraction: all starts are forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(40.0, dtype=torch.float64))

    def forward(self, t, y):
        return self.rate * (torch.cos(t) - y)


def test_a_start_that_does_not_come_back_is_noticed():
    loss = solve(Pulled(), start(), TS[[0, 3]], solver=FixedRungeKutta("rk4", 200), adjoint=Reversible()).ys.sum()
    with pytest.raises(SolveError, match=r"lead back to y0 with .* contracts too much .* use Checkpointed\(\)"):
        loss.backward()


def test_a_field_that_does_not_repeat_its_values_is_noticed():
    loss = solve(Drawn(), start().requires_grad_(), TS, solver=FixedRungeKutta(), adjoint=Reversible()).ys.sum()
    with pytest.raises(SolveError, match="does not repeat its values"):
        loss.backward()


class Drawn(nn.Module):
    def forward(self, t, y):
        return y * random.random()


def test_parameters_changed_between_the_passes_are_noticed():
    field = Net()
    loss = solve(field, start(), TS, adjoint=Reversible()).ys.sum()
    with torch.no_grad():
        field.net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused():
    field, y0 = Net(), start().requires_grad_()
    (first,) = torch.autograd.grad(solve(field, y0, TS, adjoint=Reversible()).ys.sin().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
