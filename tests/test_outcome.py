"""What a person is told of a run that failed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ndeflow import RungeKutta, SolveError, runs, solve
from ndeflow.outcome import described, summary


class Fast(nn.Module):
    """dy/dt = -rate (y - cos t), with a rate that needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2000.0, dtype=torch.float64))

    def forward(self, t, y):
        return -self.rate * (y - torch.cos(t))


FIELDS = {
    "stiff": Fast(),
    "discontinuous": lambda t, y: torch.where(torch.sin(40 * t) > 0, 1.0, -1.0) * torch.ones_like(y),
    "": lambda t, y: y * y,
    "non-finite": lambda t, y: torch.where(t > 0.5, torch.nan, -y),
}


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
@pytest.mark.parametrize("cause", FIELDS)
def test_a_failed_solve_is_described_with_what_made_it_expensive(cause, batching):
    """A solution that ends is no expensive one: its message says all."""
    solver = RungeKutta(batching=batching, max_steps=200, compile="off")
    y0, ts = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 100.0], dtype=torch.float64)
    with pytest.raises(SolveError) as raised:
        solve(FIELDS[cause], y0, ts, solver=solver)
    line = described(raised.value)
    assert line.startswith(str(raised.value)) and "\n" not in line
    if cause in ("stiff", "discontinuous"):
        assert f"; judged by its steps: {cause}: " in line
        assert raised.value.partial.stats.attempts.accepted.shape == (2, 200)
        assert not raised.value.partial.stats.error.requires_grad
    else:
        assert "judged by its steps" not in line and (raised.value.partial is None) == (cause == "non-finite")


def test_a_result_that_is_no_number_is_shown_as_such(tmp_path):
    runs.write_json(tmp_path / "results.json", {"test/loss": math.nan, "best/val/loss": 0.5})
    assert "\n  loss      nan\n" in summary(tmp_path, {"name": "demo", "about": None, "expect": None})
