"""Fields that cannot be traced once and replayed: refused with the cure, or solved as they are, which is said once."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.audit import Refusal, audit
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solve import solve
from tests.numerics.compiling import HEUN, OFF, ON, TS, Small, assert_right, tanh
from tests.problems import start

pytestmark = pytest.mark.usefixtures("traced")

AUTO = RungeKutta(**HEUN, compile="auto", compile_after=0)
WEIGHT = torch.ones(2, dtype=torch.float64)


def layer(make) -> Small:
    return Small(lambda self, t, y: self.lin(self.layer(y)), layer=make().double())


def counting() -> Small:
    def rate(self, t, y):
        self.count.add_(1)
        return self.lin(y)

    field = Small(rate)
    field.register_buffer("count", torch.zeros((), dtype=torch.float64))
    return field


def hooked() -> Small:
    field = Small(tanh)
    field.lin.register_forward_hook(lambda module, inputs, output: 2 * output)
    return field


def through_numpy(self, t, y):
    return self.lin(y) + torch.from_numpy(numpy.sin(y.detach().numpy()))


def branching(self, t, y):
    return self.lin(y) if bool(y.sum() > 0) else -self.lin(y)


def in_time(self, t, y):
    return self.lin(y) if t < 0.5 else -self.lin(y)


FUNCTIONS = {
    "buffer": (counting, "writes into its arguments, parameters or buffers .*write into a copy"),
    "batchnorm": (lambda: layer(lambda: nn.BatchNorm1d(2)), "BatchNorm1d gathers running statistics.* use LayerNorm"),
    "attribute": (lambda: Small(lambda self, t, y: self.lin(y) + self.w, w=WEIGHT), "reads a tensor .*register_buf"),
    "closure": (lambda: Small(lambda self, t, y: self.lin(y) + WEIGHT), r"reads a tensor .*register_buffer"),
    "branch": (lambda: Small(branching), r"branches on values.* use torch\.where"),
    "time": (lambda: Small(in_time), r"branches on values.* use torch\.where"),
    "float": (lambda: Small(lambda self, t, y: self.lin(y) * float(t)), "reads a number out of a tensor; use torch"),
    "item": (lambda: Small(lambda self, t, y: self.lin(y) * y.max().item()), "reads a number out of a tensor"),
    "numpy": (lambda: Small(through_numpy), "leaves torch for NumPy; use torch functions"),
    "checkpoint": (
        lambda: Small(lambda self, t, y: checkpoint(self.lin, y, use_reentrant=False)),
        r"uses torch\.utils\.checkpoint; .* use adjoint=Checkpointed\(\)",
    ),
    "hook": (hooked, "its Linear has hooks, .*remove them"),
}  # fmt: skip
RANDOM = {
    "randn": lambda: Small(lambda self, t, y: self.lin(y) + torch.randn_like(y)),
    "dropout": lambda: layer(lambda: nn.Dropout(0.5)),
    "python": lambda: Small(lambda self, t, y: self.lin(y) * random.random()),
    "generator": lambda: Small(lambda self, t, y: self.lin(y) * numpy.random.rand()),
}


@pytest.mark.parametrize(("make", "cure"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_cannot_be_traced(make, cure, caplog, capfd):
    """Refused where compilation is demanded; else solved as it is, which is said once, and nothing of torch's own."""
    with pytest.raises(ValueError, match=f"expected a field that can be compiled, got Small: .*{cure}.*compile=.off"):
        solve(make(), start(), TS, solver=ON)
    found = []
    for solver in (OFF, AUTO, AUTO):
        field, y0 = make(), start().requires_grad_()
        found.append(torch.autograd.grad(solve(field, y0, TS, solver=solver).ys.sum(), [y0, field.lin.weight]))
        if solver is AUTO:
            solve(field, y0, TS, solver=solver)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    said = [message for message in caplog.messages if message.startswith("Small is not compiled: ")]
    assert len(said) == 2 and not capfd.readouterr().err


def test_layers_that_write_in_training_mode():
    field = layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"writes into its .*in training mode call \.eval\(\)"):
        solve(field, start(), TS, solver=ON)


def test_attention_without_dropout_draws_nothing():
    def attend(x, p):
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p)

    x = torch.ones(2, 2, 3, 4)
    audit(make_fx(lambda x: attend(x, 0.0))(x))
    with pytest.raises(Refusal, match="draws random numbers"):
        audit(make_fx(lambda x: attend(x, 0.5))(x))


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_random_numbers(make):
    """The eager solve draws them at each evaluation; a compiled one would keep them, or draw others."""
    with pytest.raises(ValueError, match=r"draws random numbers.* draw once a solve and pass the draw as context"):
        solve(make(), start(), TS, solver=ON)
    field, y0 = make(), start().requires_grad_()
    solution = solve(field, y0, TS, solver=RungeKutta("heun", 1.0, 1.0, compile="auto", compile_after=0, max_steps=200))
    assert torch.autograd.grad(solution.ys.sum(), y0)[0].isfinite().all()
    again = solve(field, y0, TS[[0, 1]], solver=RungeKutta("heun", 1.0, 1.0, compile="off")).ys
    assert not torch.equal(again[:, -1], solution.ys[:, 1])


@pytest.mark.parametrize("name", ["randn", "dropout"])
def test_steps_with_random_numbers_are_not_taken_again(name):
    y0 = start().requires_grad_()
    with pytest.raises(ValueError, match=r"got one that draws random numbers; .*use Direct\(\)"):
        solve(RANDOM[name](), y0, TS, solver=RungeKutta("heun", 1.0, 1.0, compile="off"), adjoint=Checkpointed())
    with torch.no_grad():
        solve(RANDOM[name](), y0, TS, solver=RungeKutta("heun", 1.0, 1.0), adjoint=Checkpointed())


@pytest.mark.parametrize("compile", ["off", "on"])
def test_layers_that_gather_statistics_are_not_replayed(compile):
    field, y0 = layer(lambda: nn.BatchNorm1d(2)), start().requires_grad_()
    solver = RungeKutta(**HEUN, compile=compile)
    with pytest.raises(ValueError, match=r"BatchNorm1d.*use LayerNorm or GroupNorm.*\.eval\(\)"):
        solve(field, y0, TS, solver=solver, adjoint=Checkpointed())
    assert_right(field.eval())


def test_buffers_that_are_written_are_not_replayed():
    with pytest.raises(ValueError, match=r"got one that writes into its buffers; call .*use Direct\(\)"):
        solve(counting(), start().requires_grad_(), TS, solver=OFF, adjoint=Checkpointed())


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
@pytest.mark.parametrize("solver", [OFF, ON], ids=["off", "on"])
@pytest.mark.parametrize("write", [lambda t, y: y.mul_(0.5), lambda t, y: y[:, 0].add_(1.0), lambda t, y: t.add_(0.0)])
def test_a_field_that_writes_into_its_arguments(write, solver, adjoint):
    """Refused at its first evaluation, compiled or not."""

    def rate(self, t, y):
        write(t, y)
        return self.lin(y)

    with pytest.raises(ValueError, match=r"expected a field that leaves its arguments as they are.* y\.clone\(\)"):
        solve(Small(rate), start(), TS, solver=solver, adjoint=adjoint)


def in_place(self, t, y):
    z = self.lin(y) * 2.0
    z.mul_(0.5)
    z[:, 0] += t
    return z


def inner_gradient(self, t, y):
    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        return -torch.autograd.grad(torch.tanh(self.lin(y)).square().sum(), y, create_graph=True)[0]


def trace_of_jacobian(self, t, y):
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(self.lin(row))))(y)
    return torch.tanh(self.lin(y)), jacobian.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)


RIGHT = {
    "in place on intermediates": lambda: Small(in_place),
    "gradient inside": lambda: Small(inner_gradient),
    "jacobian inside": lambda: Small(trace_of_jacobian),
    "convolution": lambda: layer(lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 1), nn.Flatten())),
    "layer norm": lambda: layer(lambda: nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 2))),
    "recurrent": lambda: Small(lambda self, t, y: self.cell(y, y) - y, cell=nn.GRUCell(2, 2).double()),
    "spectral norm": lambda: layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))).eval(),
    "dropout off": lambda: layer(lambda: nn.Dropout(0.5)).eval(),
}  # fmt: skip


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_what_can_be_traced(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        field = make()
    assert_right(field)
