"""Large matrix products: as exact as torch's, and only where they are meant to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ndeflow.numerics import products
from ndeflow.numerics.compiled import Guards, Program, Traced
from ndeflow.numerics.products import WORTH
from ndeflow.numerics.rewrites import rules

OPERATION = torch.ops.ndeflow._linear_pointwise.default
FORWARD, BACKWARD = rules(), rules(backward=True)
SIZES = [(round(entries**0.5), rows) for entries, rows in WORTH]
SIZE, MANY = SIZES[0]


@pytest.fixture(autouse=True)
def paying(monkeypatch):
    """As on a machine where large products gain."""
    monkeypatch.setattr(products, "pays", lambda: True)


def rewritten(product, x: Tensor, weight: Tensor, batched=(True, False), how=FORWARD) -> tuple[bool, Guards]:
    """Whether the operation is in the rewritten graph of a product, and for which rows that is right."""
    traced = Traced(lambda *inputs: [product(*inputs)], (x, weight), batched)
    graph = traced.rewritten(traced.graph, how)
    return any(node.target is OPERATION for node in graph.graph.nodes), traced.guards(2)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize("sizes", [(3, 5, 7), (64, 256, 128)])
def test_it_is_the_product_of_matrices_however_they_lie(sizes):
    torch.manual_seed(0)
    m, k, n = sizes
    for x in (torch.randn(m, k), torch.randn(k, m).t()):
        for weight in (torch.randn(k, n), torch.randn(n, k).t()):
            found = OPERATION(x, weight.t(), None, "none", [], "")
            want = x.double() @ weight.double()
            scale = x.double().abs() @ weight.double().abs()
            assert found.is_contiguous() and ((found - want).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("how", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize(("size", "many"), SIZES)
@pytest.mark.parametrize("used", [True, False])
def test_of_many_rows_and_a_large_weight(size, many, used, how):
    weight = ones(size, size)
    found, guards = rewritten(torch.mm, ones(many if used else many - 1, size), weight, how=how)
    assert found == used
    for other in (2, many - 1, many, 1000):
        assert guards.hold(other, [ones(other, size), weight]) == ((other >= many) == used)


@pytest.mark.parametrize(("size", "many"), SIZES)
@pytest.mark.parametrize("used", [True, False])
def test_over_many_rows_into_a_large_matrix(size, many, used):
    """As the gradients of weights are found, over the rows of several stages, each of which counts."""
    rows = many if used else many - 1

    def gradient(g: Tensor, x: Tensor) -> Tensor:
        return torch.cat([g, g, g]).t() @ torch.cat([x, x, x])

    found, guards = rewritten(gradient, ones(rows, size), ones(rows, size), batched=(True, True))
    assert found == used
    for other in (2, many - 1, many, 1000):
        given = [ones(other, size), ones(other, size)]
        assert guards.hold(other, given) == ((other >= many) == used)


def test_few_columns_are_right_for_the_same_rows_as_their_backward_pass():
    """In which they may be a large product."""
    size, many = SIZES[1]
    for rows in (many, many - 1):
        x, weight = ones(rows, 4), ones(4, size**2 // 4)
        found, guards = rewritten(torch.mm, x, weight)
        assert not found and guards.hold(many, [ones(many, 4), weight]) == (rows >= many)


def test_small_weights_double_precision_and_fixed_sizes_are_left_alone(monkeypatch):
    double = ones(SIZE, SIZE, dtype=torch.float64)
    assert not rewritten(torch.mm, ones(100, SIZE), ones(SIZE, SIZE - 1))[0]
    assert not rewritten(torch.mm, ones(1000, 64), ones(64, 63))[0]
    assert not rewritten(torch.mm, ones(100, SIZE, dtype=torch.float64), double)[0]
    assert not rewritten(torch.mm, ones(100, SIZE), ones(SIZE, SIZE), batched=(False, False))[0]
    assert not rewritten(torch.mm, ones(100, SIZE), ones(SIZE, SIZE), how=rules(steady=False))[0]
    monkeypatch.setattr(products, "pays", lambda: False)
    assert not rewritten(torch.mm, ones(100, SIZE), ones(SIZE, SIZE))[0]


def test_machine_code_calls_it():
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE)
    before = counters["inductor"]["fxgraph_cache_bypass"]
    program = Program(lambda x, w: [(x @ w.t()).relu()], (torch.randn(MANY, SIZE), weight), (True, False), FORWARD)
    assert counters["inductor"]["fxgraph_cache_bypass"] == before, "code is not kept for other processes"
    for rows in (MANY, 3 * MANY):
        x = torch.randn(rows, SIZE)
        (found,) = program([x, weight])
        torch.testing.assert_close(found, (x @ weight.t()).relu(), rtol=1e-5, atol=1e-4)
