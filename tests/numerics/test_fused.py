"""A scalar and its gradient as one program: as they are one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.numerics.compiled import Traced
from ndeflow.numerics.fused import Fused


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fixed = nn.Parameter(torch.tensor([1.5, -0.5])), nn.Parameter(torch.tensor(2.0))
        self.fixed.requires_grad_(False)
        self.register_buffer("shift", torch.tensor(0.3))
        self.unused, self.matrix = nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
        self.bend, self.gain, self.calls = nn.Tanh(), 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.gain * self.bend((self.scale * (x @ self.matrix)).sum(dim=1) + self.shift) * self.fixed


def slope(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Mean of weight |grad module|^2."""
    return (weight * torch.func.grad(lambda x: module(x).sum())(x).square().sum(dim=1)).mean()


def gradient(function, module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The value, then three times the derivatives."""
    value = function(module, *inputs)
    module.zero_grad()
    (3 * value).backward()
    return [value.detach(), *(p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters())]


def test_value_and_gradient_are_those_of_the_function_for_any_rows_and_weights() -> None:
    module, fused = Bent().double(), Fused(slope)
    for rows in (40, 40, 70):
        with torch.no_grad():
            module.scale += 0.1
            module.shift -= 0.1
        inputs = torch.randn(rows, 2, dtype=torch.float64), torch.rand(rows, dtype=torch.float64)
        want, found = gradient(slope, module, *inputs), gradient(fused, module, *inputs)
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-14)
        assert want[1].abs().min() > 0
    assert len(fused._made[module].programs) == 1


CHANGES = {
    "part": lambda module: setattr(module, "bend", nn.Sigmoid()),
    "attribute": lambda module: setattr(module, "gain", 3.0),
    "layout": lambda module: setattr(module.matrix, "data", module.matrix.data.t().contiguous().t()),
    "frozen": lambda module: module.scale.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_module_that_has_changed_gets_a_program_of_its_own(traced, change) -> None:
    module, fused = Bent().double(), Fused(slope)
    inputs = torch.randn(40, 2, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    gradient(fused, module, *inputs)
    change(module)
    torch.testing.assert_close(
        gradient(fused, module, *inputs), gradient(slope, module, *inputs), rtol=1e-12, atol=1e-14
    )
    assert len(fused._made[module].programs) == 2


def test_what_a_module_writes_itself_needs_no_other_program(traced) -> None:
    module, fused = Bent().double(), Fused(slope)
    inputs = torch.randn(40, 2, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    for _ in range(3):
        gradient(fused, module, *inputs)
        gradient(slope, module, *inputs)
    assert module.calls > 3 and len(fused._made[module].programs) == 1


def test_inputs_may_lie_anyhow(traced) -> None:
    module, fused = Bent().double(), Fused(slope)
    x, weight = torch.randn(40, 2, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    wanted = fused(module, x, weight)
    assert torch.equal(fused(module, x.t().contiguous().t(), weight.repeat_interleave(2)[::2]), wanted)


def test_zeros_of_forward_mode_have_memory() -> None:
    """Those that torch makes have none, and machine code would read it."""

    def bent(w: Tensor, x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            value = torch.func.jvp(lambda x: nn.functional.linear(x.tanh(), leaf, leaf[0]), (x,), (x,))[1].sum()
            return list(torch.autograd.grad(value, [leaf]))

    w, x = torch.randn(2, 2), torch.randn(5, 2)
    graph = Traced(bent, [w, x], [False, True]).graph
    assert not [node for node in graph.graph.nodes if "zerotensor" in str(node.target)]
    torch.testing.assert_close(graph(w, x), bent(w, x))


def test_what_cannot_be_compiled_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="a function of Bent: it .*random"):
        Fused(lambda module, x: (module(x) * torch.rand_like(x[:, 0])).mean())(Bent(), torch.ones(4, 2))
