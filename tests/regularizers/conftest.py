"""What tests of regularizers share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def drawn(monkeypatch):
    """Sets what the next draws of random times are."""

    def draw(u: float) -> None:
        rand = torch.rand
        monkeypatch.setattr(torch, "rand", lambda *size, **kinds: rand(*size, **kinds).fill_(u))

    return draw
