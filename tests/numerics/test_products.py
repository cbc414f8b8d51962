"""Matrix products: as exact as torch's, and only where they are meant to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ndeflow.numerics import products
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import Program, Traced
from ndeflow.numerics.lowering import provide
from ndeflow.numerics.products import LAID, asked, lay_once, product
from ndeflow.numerics.rewrites import rules

RULES = [rules(), rules(backward=True)]
HERE = products.pays()


@pytest.fixture
def paying(monkeypatch):
    """As on a machine that has AVX-512."""
    monkeypatch.setattr(products, "pays", lambda: True)


def rewritten(product, x: Tensor, weight: Tensor, batched=(True, False), how=RULES[0]) -> bool:
    """Whether the operation is in the rewritten graph of a product, which is then right for any rows from 2 on."""
    traced = Traced(lambda *inputs: [product(*inputs)], (x, weight), batched)
    graph = traced.rewritten(traced.graph, how)
    guards = traced.guards(2)
    for rows in (2, 3, 1000):
        given = [x.new_ones(rows, *x.shape[1:]) if b else x for x, b in zip((x, weight), batched, strict=True)]
        assert guards.hold(rows, given)
    return asked(graph.graph)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize("how", RULES, ids=["forward", "backward"])
def test_batches_times_weights_and_gradients_of_weights(paying, how):
    def gradient(g: Tensor, x: Tensor) -> Tensor:
        return torch.cat([g, g, g]).t() @ torch.cat([x, x, x])

    for rows in (2, 32, 500):
        assert rewritten(torch.mm, ones(rows, 64), ones(64, 48), how=how)
        assert rewritten(lambda x, w: x @ w.t(), ones(rows, 64), ones(48, 64), how=how)
        assert rewritten(lambda x, w: torch.addmm(w[0], x, w), ones(rows, 64), ones(64, 48), how=how)
        assert rewritten(gradient, ones(rows, 64), ones(rows, 48), (True, True), how=how)


@pytest.mark.parametrize("how", RULES, ids=["forward", "backward"])
def test_single_rows_and_matrices_of_fixed_sizes(paying, how):
    for function in (lambda x, w: [x @ w], lambda x, w: [w @ w]):
        traced = Traced(function, (ones(1, 64), ones(64, 64)), (True, False))
        assert asked(traced.rewritten(traced.graph, how).graph)


def test_weights_that_are_taken_by_columns_are_laid_by_rows_once(paying):
    def stages(x: Tensor, weight: Tensor, other: Tensor) -> list[Tensor]:
        return [torch.tanh(x @ weight.t()) @ weight.t() @ other.t() @ other]

    given = ones(3, 64), ones(64, 64), ones(64, 64)
    traced = Traced(stages, given, (True, False, False))
    graph = traced.rewritten(traced.graph, RULES[0])
    want = graph(*given)[0]
    lay_once(graph.graph)
    graph.graph.lint()
    graph.recompile()
    assert [len(node.users) for node in graph.graph.find_nodes(op="call_function", target=LAID)] == [2, 1]
    assert torch.equal(graph(*given)[0], want)


def test_matrices_that_are_not_the_same_are_each_laid(paying):
    def sums(x: Tensor, one: Tensor, other: Tensor) -> list[Tensor]:
        sums = [torch.add(one.t(), other.t(), alpha=alpha) for alpha in (1.0, 3.0)]
        return [x @ sums[0] @ sums[1]]

    given = ones(3, 8), torch.rand(8, 8), torch.rand(8, 8)
    traced = Traced(sums, given, (True, False, False))
    graph = traced.rewritten(traced.graph, {torch.ops.aten.mm.default: product})
    lay_once(graph.graph)
    graph.recompile()
    assert len(graph.graph.find_nodes(op="call_function", target=LAID)) == 2
    torch.testing.assert_close(graph(*given), sums(*given))


def test_few_columns_double_precision_and_gaps_are_left_alone(paying, monkeypatch):
    double = torch.float64
    assert not rewritten(torch.mm, ones(32, 4), ones(4, 64))
    assert not rewritten(torch.mm, ones(32, 64, dtype=double), ones(64, 64, dtype=double))
    assert not rewritten(lambda x, w: x[:, ::2] @ w, ones(32, 64), ones(32, 64))
    assert not rewritten(lambda x, w: x[:1].expand_as(x) @ w, ones(32, 64), ones(64, 64))
    monkeypatch.setattr(products, "pays", lambda: False)
    assert not rewritten(torch.mm, ones(32, 64), ones(64, 64))


@pytest.mark.skipif(not HERE, reason="needs Linux, AVX-512")
def test_machine_code_calls_it_and_is_kept_for_other_processes():
    """Sizes that no block divides; factors that lie by rows and by columns, deeper than is transposed at once."""

    def both(x: Tensor, weight: Tensor) -> list[Tensor]:
        found = [(x @ weight.t()).relu(), x.t() @ (x @ weight.t()), (x @ weight.t()) @ weight]
        return [*found, x @ x.t() @ x, x.t() @ (weight @ x.t()).t()]

    torch.manual_seed(0)
    weight = torch.randn(23, 71)
    before = counters["inductor"]["fxgraph_cache_bypass"]
    program = Program(both, (torch.randn(9, 71), weight), (True, False), RULES[0])
    assert counters["inductor"]["fxgraph_cache_bypass"] == before
    for rows in (2, 9, 63, 64, 65, 700):
        x = torch.randn(rows, 71)
        want = both(x.double(), weight.double())
        scale = both(x.abs().double(), weight.abs().double())
        for found, exact, size in zip(program.run([x, weight]), want, scale, strict=True):
            assert found.is_contiguous() and ((found - exact).abs() <= 1e-6 * size + 1e-6).all()


def test_where_it_cannot_be_made_nothing_is_compiled(monkeypatch):
    def load(*_, **__):
        raise OSError("undefined symbol: brgemm")

    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load", load)
    provide.cache_clear()
    with pytest.raises(Refusal, match=r"could not be made for AVX-512 \(undefined symbol: brgemm\); update torch"):
        provide()


@pytest.mark.skipif(not HERE, reason="needs Linux, AVX-512")
def test_threads_share_the_rows():
    torch.manual_seed(0)
    x, weight, threads = torch.randn(100, 300), torch.randn(300, 300), torch.get_num_threads()
    program = Program(lambda x, w: [x @ w, x @ w.t(), x.t() @ x], (x, weight), (True, False), RULES[0])
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(program.run([x, weight]))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[0][1], x @ weight.t(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[0][2], x.t() @ x, rtol=1e-5, atol=1e-3)
