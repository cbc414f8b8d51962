"""A traced function cut in two computes what it did, and keeps what was computed, not views of it."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ndeflow.numerics.partition import cut


def halves(function, groups, *inputs):
    """The front and the rests of a function of these inputs."""
    return cut(make_fx(function)(*inputs), groups)


def shapes(graph) -> list[tuple[int, ...]]:
    (results,) = graph.graph.output_node().args
    return [tuple(x.meta["val"].shape) for x in results]


def test_both_halves_together_are_the_function():
    x, w, c, d = torch.randn(3, 2), torch.randn(2, 4), torch.randn(3, 4), torch.randn(3, 2)

    def function(x, w, c, d):
        a = torch.tanh(x @ w)
        g = c * (1 - a * a)
        return [a.sum(dim=1), g @ w.mT, x.mT @ g, d + x]

    front, (first, second) = halves(function, (1, 2, 1), x, w, c, d)
    wanted = function(x, w, c, d)
    result, *kept = front(x, w, c, d)
    assert shapes(front) == [(3,), (3, 4)]  # tanh(x w) is kept, its transpose or square not
    for found, right in zip([result, *first(x, w, c, d, *kept), *second(x, w, c, d, *kept)], wanted, strict=True):
        assert torch.equal(found, right)


def test_the_front_reads_no_later_argument():
    x, c = torch.randn(3), torch.randn(3)
    front, (rest,) = halves(lambda x, c: [s := x.sin(), s * c], (1, 1), x, c)
    used = [node.name for node in front.graph.nodes if node.op == "placeholder" and node.users]
    assert len(used) == 1 and len(front(x, None)) == 2
    assert torch.equal(rest(x, c, x.sin())[0], x.sin() * c)


def test_columns_of_what_is_known_are_kept_instead_of_their_parts():
    x, w, c = torch.randn(3, 2), torch.randn(2, 2), torch.randn(3, 2)

    def function(x, w, c):
        a = torch.tanh(x @ w)
        b = torch.tanh(a @ w)
        return [b, torch.cat([a, b]).mT @ torch.cat([c, a * c])]

    front, (rest,) = halves(function, (1, 1), x, w, c)
    b, *kept = front(x, w, c)
    assert shapes(front) == [(3, 2), (6, 2)]
    right = function(x, w, c)
    assert torch.equal(b, right[0]) and torch.equal(rest(x, w, c, *kept)[0], right[1])


def test_numbers_are_made_again():
    t, x, c = torch.tensor(0.3), torch.randn(3), torch.randn(3)
    front, (rest,) = halves(lambda t, x, c: [x * t.cos().exp(), c * t.cos().exp()], (1, 1), t, x, c)
    assert shapes(front) == [(3,)] and torch.equal(rest(t, x, c)[0], c * t.cos().exp())


def test_sizes_are_read_of_what_they_are():
    """A size that is read before a column is put ahead is none of the column's pieces."""
    x, c = torch.randn(3, 2), torch.randn(3, 2)

    def function(x, c):
        zeros = c.new_zeros(x.shape[0], 2)
        a = x.sin()
        return [a, torch.cat([x, a]).sum(dim=0) + (zeros + c * a).sum(dim=0)]

    traced = make_fx(function, tracing_mode="symbolic")(x, c)
    front, (rest,) = cut(traced, (1, 1))
    a, *kept = front(x, None)
    assert torch.equal(rest(x, c, *kept)[0], function(x, c)[1]) and torch.equal(a, x.sin())
