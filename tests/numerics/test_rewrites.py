"""Rewrites of traced steps: close to what they replace, and only where they may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ndeflow.numerics import products
from ndeflow.numerics.rational import rational_tanh
from ndeflow.numerics.rewrites import SMALL, STAGES, Rewriter, rules
from tests.problems import apart

FORWARD, BACKWARD = rules(), rules(backward=True)


def silu(x: Tensor) -> Tensor:
    return nn.functional.silu(x)


HALF = torch.linspace(0, 20, 100_001, dtype=torch.float64)
X = torch.cat([-HALF.flip(0), HALF])


def rewritten(function, *inputs: Tensor, how=BACKWARD, mode: str = "real") -> fx.GraphModule:
    graph = make_fx(function, tracing_mode=mode)(*inputs)
    if mode == "symbolic":
        return _as_fake(graph, how)
    return make_fx(Rewriter(graph, how).run, tracing_mode="real")(*inputs)


def _as_fake(graph: fx.GraphModule, how) -> fx.GraphModule:
    fakes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with fakes[0].fake_mode:
        return make_fx(Rewriter(graph, how).run, tracing_mode="real")(*fakes)


def targets(graph: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(("function", "bound"), [(torch.tanh, 4e-7), (torch.sigmoid, 4e-7), (silu, 4e-6)])
def test_rational_functions_in_single_precision(function, bound):
    graph = rewritten(function, X.float())
    assert not targets(graph) & {"aten.tanh.default", "aten.sigmoid.default", "aten.silu.default"}
    assert (graph(X.float()).double() - function(X.float().double())).abs().max() < bound


def test_tanh_rises_to_one():
    """It is odd, does not leave [-1, 1] by more than rounding, and is constant beyond its bound."""
    y = rational_tanh(X.float())
    assert torch.equal(y, -y.flip(0)) and y.abs().max() <= 1 + 1.2e-7
    assert y.diff().min() > -6e-7 and (y[X > 8] == y[-1]).all() and abs(y[-1] - 1) < 1.2e-7


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, silu])
def test_gradients(function):
    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x).sum(), x)[0]

    graph = rewritten(slope, X.float())
    assert (graph(X.float()).double() - slope(X)).abs().max() < 4e-6


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, silu])
def test_double_precision_is_left_alone(function):
    graph = rewritten(function, X)
    assert torch.equal(graph(X), function(X)) and len(targets(graph)) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(1, 8), (4, 8), (8, 3), (8, 1), (8, 8)])
def test_products_over_a_dynamic_number_of_rows(inner, outer, bias):
    """Fused multiplications for few columns; the same to rounding, for other numbers of rows too."""
    x = torch.linspace(-1, 1, 5 * inner, dtype=torch.float64).view(5, inner)

    def product(x: Tensor) -> Tensor:
        return nn.functional.linear(x, weight_of(x), shift_of(x)) if bias else x @ weight_of(x).T

    def weight_of(x: Tensor) -> Tensor:
        return torch.full((outer, inner), 0.5, dtype=x.dtype) + torch.eye(outer, inner, dtype=x.dtype)

    def shift_of(x: Tensor) -> Tensor:
        return torch.full((outer,), 0.25, dtype=x.dtype)

    graph = rewritten(product, x, how=FORWARD, mode="symbolic")
    assert ("aten.mm.default" in targets(graph)) == (min(inner, outer) > SMALL)
    for rows in (x, x[:2] * 3):
        assert apart(graph(rows), product(rows)) < 1e-15
    # nor does it slice rows: whether one of all is left out depends on what was made before, and kept code is not found
    assert all(node.args[1] == 1 for node in graph.graph.nodes if node.target is torch.ops.aten.slice.Tensor)


def test_products_of_a_single_row_have_few_columns_too():
    x, weight = torch.tensor([[2.0, 3.0]]), torch.eye(2, 8)
    graph = rewritten(torch.mm, x, weight, how=FORWARD)
    assert "aten.mm.default" not in targets(graph) and torch.equal(graph(x, weight), x @ weight)


@pytest.mark.parametrize(("inner", "fused"), [(0, False), (1, True), (STAGES, True), (STAGES + 1, False)])
def test_products_of_fixed_shapes_have_few_terms(inner, fused, monkeypatch):
    """As the gradient of a weight of a step of a single row has; its first factor lies by columns."""
    monkeypatch.setattr(products, "pays", lambda: False)
    x, y = torch.arange(5.0 * inner).view(inner, 5), torch.arange(3.0 * inner).view(inner, 3)
    graph = rewritten(lambda x, y: x.t() @ y, x, y, how=rules(backward=True))
    assert ("aten.mm.default" in targets(graph)) != fused and torch.equal(graph(x, y), x.t() @ y)


def test_scaled_products_are_left_alone(monkeypatch):
    monkeypatch.setattr(products, "pays", lambda: False)
    x, weight, shift = torch.ones(5, 2), torch.ones(2, 3), torch.ones(3)
    scaled = rewritten(lambda b, x, w: torch.addmm(b, x, w, alpha=2.0), shift, x, weight, how=FORWARD)
    assert "aten.addmm.default" in targets(scaled) and torch.equal(scaled(shift, x, weight), torch.full((5, 3), 5.0))
