"""End times are jittered in training only, within their bounds, and only where no target would move."""

import pytest
import torch

from ndeflow.contracts import Problem
from ndeflow.numerics.paths import Linear
from ndeflow.regularizers import EndTimeJitter


def problem(ts, context=None):
    return Problem(field=None, y0=torch.zeros(2, 1), ts=ts, context=context)


def test_ends_are_uniform_within_the_width():
    torch.manual_seed(0)
    jitter, ts = EndTimeJitter(0.5), torch.tensor([1.0, 3.0])
    ends = torch.stack([jitter.prepare(problem(ts)).ts for _ in range(2000)])
    assert (ends[:, 0] == 1).all()
    assert ends[:, 1].min() >= 2 and ends[:, 1].max() <= 4
    assert ends[:, 1].mean().item() == pytest.approx(3, abs=0.05)
    assert ends[:, 1].var().item() == pytest.approx(2.0**2 / 12, rel=0.1)


def test_rows_with_their_own_times_keep_their_proportions():
    torch.manual_seed(0)
    ts = torch.tensor([[0.0, 1.0], [0.0, 10.0]])
    end = EndTimeJitter(0.3).prepare(problem(ts)).ts[:, 1]
    assert end[1].item() == pytest.approx(10 * end[0].item()) and abs(end[0].item() - 1) > 1e-4


def test_interior_times_and_control_paths_are_refused():
    with pytest.raises(ValueError, match="whose targets would move"):
        EndTimeJitter().prepare(problem(torch.tensor([0.0, 1.0, 2.0])))
    path = Linear.through(torch.tensor([0.0, 1.0]), torch.zeros(2, 2, 1))
    with pytest.raises(ValueError, match="without a control path"):
        EndTimeJitter().prepare(problem(torch.tensor([0.0, 1.0]), path))


@pytest.mark.parametrize("width", [0.0, 1.0, -0.1])
def test_widths_outside_the_unit_interval_are_refused(width):
    with pytest.raises(ValueError, match="expected width"):
        EndTimeJitter(width)
