import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ndeflow.numerics.audit import writes
from ndeflow.numerics.inplace import write_anew

X = torch.linspace(-1, 1, 6).view(3, 2)


def filled(x: Tensor) -> list[Tensor]:
    y = 1 / x.relu()
    before = y + 1
    y.masked_fill_(x < 0, 0)
    return [before, y, y * 2]


def twice(x: Tensor) -> list[Tensor]:
    y = x.exp()
    z = y.add_(1).mul_(x)
    y.sub_(2)
    return [y * z]


def viewed(x: Tensor) -> list[Tensor]:
    y = x.exp()
    row = y[0]
    y.add_(1)
    return [row, y]


def narrow(x: Tensor) -> list[Tensor]:
    y = x.half() + 1
    y.add_(x)
    return [y]


@pytest.mark.parametrize(("function", "left"), [(filled, 0), (twice, 0), (viewed, 1), (narrow, 1)])
def test_writes_into_fresh_results_become_results(function, left) -> None:
    graph = make_fx(function, tracing_mode="fake")(X)
    assert any(map(writes, graph.graph.nodes))
    write_anew(graph.graph)
    graph.recompile()
    graph.graph.lint()
    assert sum(map(writes, graph.graph.nodes)) == left
    for found, expected in zip(graph(X), function(X), strict=True):
        assert torch.equal(found, expected)
