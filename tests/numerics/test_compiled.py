"""Machine code checks the shapes of what it is given only where they are not known beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndeflow.numerics import products
from ndeflow.numerics.compiled import Traced, written
from ndeflow.numerics.rewrites import rules

WRITTEN = {
    "network": lambda x, w: torch.tanh(x @ w),
    "attention": lambda x, w: (x @ x.t()).softmax(dim=1) @ x @ w,
    "norm": lambda x, w: torch.nn.functional.layer_norm(x, x.shape[1:]) * w[0],
}
CALLED = {
    "solve": lambda x, w: torch.linalg.solve(w, x.t()),
    "spectrum": lambda x, w: torch.fft.rfft(x).abs(),
}


def graph(function, how):
    traced = Traced(lambda x, w: [function(x, w)], (torch.ones(8, 32), torch.eye(32)), (True, False))
    return traced.rewritten(traced.graph, how)


@pytest.mark.parametrize("how", [rules(), {}], ids=["rewritten", "as it is"])
@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_operations_that_are_written_have_the_shapes_that_were_foretold(function, how, monkeypatch):
    monkeypatch.setattr(products, "pays", lambda: True)
    assert written(graph(function, how))


@pytest.mark.parametrize("function", CALLED.values(), ids=CALLED)
def test_operations_that_are_called_are_checked(function):
    assert not written(graph(function, {}))


def test_operations_of_others_are_checked():
    with torch.library._scoped_library("others", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

        def twice(x: Tensor, w: Tensor) -> Tensor:
            return torch.ops.others.twice(x) @ w

        assert not written(graph(twice, rules()))
