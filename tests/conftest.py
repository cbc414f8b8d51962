"""Settings of every test: one thread, so that figures repeat, and no figure window."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from sympy import Integer, Symbol

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
    from ndeflow.numerics import compilation, lowering

    monkeypatch.setattr(lowering, "lower", checked)
    monkeypatch.setattr(compilation, "_compiler", lambda: None)


def checked(graph: Any) -> Callable[[list[Any]], Any]:
    """The call of a graph, which looks at dtypes, sizes and strides first."""
    traced = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]

    def call(inputs: list[Any]) -> Any:
        pairs = list(zip(inputs, traced, strict=True))
        sizes = [pair for x, example in pairs for pair in zip(_terms(example.shape), x.shape, strict=True)]
        known = {term: size for term, size in sizes if isinstance(term, Symbol)}
        for x, example in pairs:
            assert x.dtype == example.dtype
            assert list(x.shape) == [n.subs(known) for n in _terms(example.shape)]
            strides = [n.subs(known) for n in _terms(example.stride())]
            assert all(size == 1 or n == m for size, n, m in zip(x.shape, x.stride(), strides, strict=True))
        return graph.forward(*inputs)

    return call


def _terms(numbers: Sequence[Any]) -> list[Any]:
    """Traced sizes or strides, in the symbols that stand for what may change."""
    return [n.node.expr if isinstance(n, torch.SymInt) else Integer(n) for n in numbers]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two steps, which are traced in less time than of five."""
    from ndeflow.numerics import chunks

    monkeypatch.setattr(chunks, "LONGEST", 2)
