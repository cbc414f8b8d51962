"""What is taken again in a backward pass must be what was taken before; other fields are refused."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solve import solve
from tests.problems import Net, start

TS = torch.linspace(0, 1, 3, dtype=torch.float64)
AGAIN = pytest.mark.parametrize("adjoint", [Checkpointed(), Reversible(), Backsolve()], ids=lambda x: type(x).__name__)


def total(field, adjoint, compile="off"):
    solver = FixedRungeKutta("rk4", steps=2, compile=compile)
    return solve(field, start(), TS, solver=solver, adjoint=adjoint).ys.square().sum()


class Decay(nn.Module):
    """dy/dt = -(gain + more) y."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("more", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, y):
        return -(self.gain + self.more) * y


def gradient(adjoint, buffer: bool) -> torch.Tensor | None:
    """By a tensor that is no part of a field, but of which one of its buffers is made, or a plain attribute."""
    outside, field = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), Decay()
    if not buffer:
        del field.more
    field.more = torch.sin(outside)
    total(field, adjoint).backward()
    return outside.grad


@AGAIN
def test_a_buffer_computed_outside_the_field_is_differentiated(adjoint):
    found, right = gradient(adjoint, True), gradient(Direct(), True)
    assert found is not None and right is not None and torch.allclose(found, right, rtol=1e-3)


@AGAIN
def test_a_tensor_that_is_no_part_of_the_field_is_refused(adjoint):
    with pytest.raises(ValueError, match=r"depends on another tensor \(\) that needs gradients"):
        gradient(adjoint, False)


class Hamiltonian(Net):
    """dy/dt by the gradient of an energy, found inside at a leaf of the field's own."""

    def forward(self, t, y):
        with torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            energy = (self.net(y).square().sum(dim=1) * torch.cos(time)).sum()
            (slope,) = torch.autograd.grad(energy, time, create_graph=True)
        return slope * self.net(y)


@AGAIN
def test_leaves_that_a_field_makes_are_its_own(adjoint):
    gradients = []
    for one in (Direct(), adjoint):
        field = Hamiltonian()
        total(field, one).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-2)


@AGAIN
def test_a_parameter_may_be_set_free_between_the_passes(adjoint):
    """As those of a critic that its generator's step leaves alone."""
    field, y0 = Net().requires_grad_(False), start().requires_grad_()
    loss = solve(field, y0, TS, solver=FixedRungeKutta("rk4", compile="off"), adjoint=adjoint).ys.sum()
    field.requires_grad_(True)
    loss.backward()
    assert y0.grad is not None and all(p.grad is None for p in field.parameters())


def test_layers_that_compute_otherwise_with_gradients_repeat():
    class Switching(Net):
        def forward(self, t, y):
            rate = super().forward(t, y)
            return rate * (1 + 1e-3 * torch.is_grad_enabled())

    field = Switching()
    total(field, Checkpointed()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())


@AGAIN
def test_a_buffer_computed_from_a_parameter_of_the_field_is_refused(adjoint):
    field = Decay()
    field.more = field.gain.clone()
    with pytest.raises(ValueError, match="not computed from one another"):
        total(field, adjoint).backward()


class Model(nn.Module):
    """One that solves, for `functional_call`."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Net()

    def forward(self, adjoint, compile="off"):
        return total(self.field, adjoint, compile)


def fast(model) -> dict[str, torch.Tensor]:
    return {name: (1.5 * p.detach()).requires_grad_() for name, p in model.named_parameters()}


@AGAIN
def test_parameters_that_were_the_fields_in_its_solve_alone_are_refused(adjoint):
    model = Model()
    with pytest.raises(ValueError, match=r"with the parameters of its solve.*functional_call"):
        functional_call(model, fast(model), (adjoint,)).backward()


def test_compiled_solves_need_such_parameters_for_second_derivatives_alone(traced):
    model = Model()
    values = fast(model)
    eager, compiled = (functional_call(model, values, (Direct(), compile)) for compile in ("off", "on"))
    wanted = torch.autograd.grad(eager, list(values.values()))
    with pytest.raises(ValueError, match="with the parameters of its solve"):
        torch.autograd.grad(compiled, list(values.values()), create_graph=True)
    for found, right in zip(torch.autograd.grad(compiled, list(values.values())), wanted, strict=True):
        assert torch.allclose(found, right, rtol=1e-10)


@pytest.mark.parametrize("adjoint, compile", [(Direct(), "on"), (Checkpointed(), "on"), (Checkpointed(), "off")])
def test_a_buffer_written_to_between_the_passes_is_noticed(traced, adjoint, compile):
    field = Decay()
    loss = solve(field, start(), TS, solver=FixedRungeKutta(compile=compile), adjoint=adjoint).ys.sum()
    field.more.mul_(2)
    with pytest.raises((RuntimeError, ValueError), match="modified by an inplace operation|gives the same values"):
        loss.backward()


@pytest.mark.parametrize("adjoint, compile", [(Direct(), "on"), (Checkpointed(), "on"), (Checkpointed(), "off")])
def test_a_buffer_that_the_field_does_not_read_may_be_written_to(traced, adjoint, compile):
    field = Decay()
    field.register_buffer("count", torch.zeros(()))
    loss = solve(field, start(), TS, solver=FixedRungeKutta(compile=compile), adjoint=adjoint).ys.sum()
    field.count.add_(1)
    loss.backward()
    assert field.gain.grad is not None


def test_an_attribute_set_between_the_passes_is_noticed():
    class Scaled(Net):
        scale = 1.0

        def forward(self, t, y):
            return self.scale * super().forward(t, y)

    field = Scaled()
    loss = total(field, Checkpointed())
    field.scale = 1.1
    with pytest.raises(ValueError, match="gives the same values in the backward pass"):
        loss.backward()


def test_draws_of_other_generators_are_noticed():
    class Noisy(Net):
        def forward(self, t, y):
            return random.random() * super().forward(t, y)

    with pytest.raises(ValueError, match="gives the same values in the backward pass"):
        total(Noisy(), Checkpointed()).backward()


@AGAIN
@pytest.mark.parametrize(
    "layer, reason", [(nn.Dropout(0.5), "draws random numbers"), (nn.BatchNorm1d(2), "statistics")]
)
def test_fields_that_cannot_be_taken_again_are_refused(adjoint, layer, reason):
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 2), layer).double()

        def forward(self, t, y):
            return self.net(y)

    with pytest.raises(ValueError, match=reason):
        total(Layer(), adjoint)
