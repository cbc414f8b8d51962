"""Outer products that are flattened late: the same values, and elements computed where the product has its shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndeflow.numerics.compiled import Traced

aten = torch.ops.aten
ELEMENTS = (aten.tanh_backward.default, aten.cat.default, aten.exp.default, aten.sin.default, aten.mul.Tensor)


def flat(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(2) @ b.unsqueeze(1)).view(-1, 6)


def gradient(a: Tensor, b: Tensor, x: Tensor, n: Tensor) -> Tensor:
    """That of a^T tanh(X) b for X, of rows 3 x 2."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x.tanh().view(-1, 3, 2) @ b.unsqueeze(2)).squeeze(2), x, a)[0]


LATE = [
    gradient,
    lambda a, b, x, n: torch.cat([flat(a, b) * x, flat(2 + a, b).exp()]) @ x[0],
    lambda a, b, x, n: flat(a, b).mul(x).add(n).sin() @ x[0],
]
EARLY = [
    lambda a, b, x, n: flat(a, b) @ x[0],
    lambda a, b, x, n: flat(a, b) * x[0],  # of another shape
    lambda a, b, x, n: torch.cat([flat(a, b), x]),
    lambda a, b, x, n: (a.unsqueeze(2) @ b[:1].unsqueeze(0).expand(len(a), -1, -1)).view(-1, 2) * b[:1],
    lambda a, b, x, n: (x.view(-1, 3, 2) @ b.view(-1, 2, 1).expand(-1, -1, 2)).view(-1, 6) * x,  # no outer product
]


@pytest.mark.parametrize("function", LATE + EARLY)
def test_elements_are_computed_in_the_shape_of_the_product(function):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((4, 3), (4, 2), (4, 6), ())]
    graph = Traced(lambda *x: [function(*x)], given, [True] * 3 + [False]).graph
    torch.testing.assert_close(graph(*given)[0], function(*given), rtol=0, atol=1e-14)
    late = [node.meta["val"].dim() == 3 for node in graph.graph.nodes if node.target in ELEMENTS if _large(node)]
    assert all(late) if function in LATE else not any(late)


def _large(node: torch.fx.Node) -> bool:
    """Whether it has as many elements a row as the product."""
    return node.meta["val"][0].numel() == 6
