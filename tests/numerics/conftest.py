"""Compiled solves without a compiler: programs run as traced, operation by operation."""

from __future__ import annotations

import pytest

from ndeflow.numerics import compilation, compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled is traced, audited and rewritten, but not lowered; no compiler is needed."""
    monkeypatch.setattr(compiled, "lower", lambda graph: lambda inputs: graph.forward(*inputs))
    monkeypatch.setattr(compilation, "_compiler", lambda: None)
