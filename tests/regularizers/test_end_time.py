"""End times are jittered in training only, within their bounds, and only where no target would move."""

import pytest
import torch
from torch import nn

from ndeflow.contracts import Problem
from ndeflow.models import NeuralODE
from ndeflow.numerics.paths import Linear
from ndeflow.regularizers import EndTimeJitter
from tests.models.series import irregular_batch


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


class FinalState(NeuralODE):
    """Solves dy/dt = rate y freely from the first seen values and reads the final state."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def field(self, t, y):
        return self.rate * y

    def times(self, batch):
        return batch.ts[:, [0, -1]]


def test_training_passes_end_at_random_and_evaluation_exactly():
    torch.manual_seed(0)
    model, batch, jitter = FinalState(), irregular_batch(), EndTimeJitter(0.5)
    exact = model(batch).solutions[0].ts
    ends = []
    for _ in range(3):
        with model.prepared({"end": jitter}) as preparation:
            output = model(batch)
        solution = output.solutions[0]
        ends.append(solution.ts[:, -1])
        share = (ends[-1] - exact[:, 0]) / (exact[:, -1] - exact[:, 0])
        assert (share - share[0]).abs().max() < 1e-6 and 0.5 <= share[0] <= 1.5 and abs(share[0] - 1) > 1e-4
        grown = solution.ys[:, 0] * torch.exp(0.5 * (ends[-1] - exact[:, 0]))[:, None].float()
        torch.testing.assert_close(output.prediction[:, -1], grown, rtol=1e-3, atol=1e-4)
        assert jitter.penalty(model, output, batch, preparation.solved["end"]) == 0
    assert not torch.equal(ends[0], ends[1])
    torch.testing.assert_close(model(batch).solutions[0].ts, exact, rtol=0, atol=0)
