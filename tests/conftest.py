"""Settings of every test: one thread, so that figures repeat, and no figure window."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def subnormal():
    """Training rounds subnormal numbers to zero, in this process for all that follows: only until the test is over."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected until the test is over."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled is traced, audited and rewritten, but not lowered; no compiler is needed.

    Arguments are held against what was traced: machine code takes it for granted that they lie in memory as then.
    """
    from ndeflow.numerics import compilation, compiled

    monkeypatch.setattr(compiled, "lower", checked)
    monkeypatch.setattr(compilation, "_compiler", lambda: None)


def checked(graph: Any) -> Callable[[list[Any]], Any]:
    """The call of a graph, which looks at dtypes, sizes and strides first."""
    traced = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]

    def call(inputs: list[Any]) -> Any:
        sizes: dict[Any, int] = {}
        for x, example in zip(inputs, traced, strict=True):
            assert x.dtype == example.dtype and x.dim() == example.dim()
            for size, traced_size in zip(x.shape, example.shape, strict=True):
                symbol = getattr(traced_size, "node", None)
                known = sizes.setdefault(symbol.expr, size) if symbol else traced_size
                assert size == known, f"expected {tuple(example.shape)}, got {tuple(x.shape)}"
        for x, example in zip(inputs, traced, strict=True):
            for size, stride, traced_stride in zip(x.shape, x.stride(), example.stride(), strict=True):
                symbol = getattr(traced_stride, "node", None)
                known = symbol.expr.subs(sizes) if symbol else traced_stride
                assert size == 1 or stride == known, f"expected strides {example.stride()}, got {x.stride()}"
        return graph.forward(*inputs)

    return call


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two steps, which are traced in less time than of five."""
    from ndeflow.numerics import chunks

    monkeypatch.setattr(chunks, "LONGEST", 2)
