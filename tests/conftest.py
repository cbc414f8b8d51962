"""Settings of every test: one thread, so that figures repeat, and no figure window."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

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
    """What would be compiled is traced, audited and rewritten, but not lowered; no compiler is needed."""
    from ndeflow.numerics import compilation, compiled

    monkeypatch.setattr(compiled, "lower", lambda graph: lambda inputs: graph.forward(*inputs))
    monkeypatch.setattr(compilation, "_compiler", lambda: None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two steps, which are traced in less time than of five."""
    from ndeflow.numerics import chunks

    monkeypatch.setattr(chunks, "LONGEST", 2)
