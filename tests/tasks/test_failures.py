"""Rows whose solve failed are no part of loss, metrics and penalties, are counted, and end a run if they are many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ndeflow import predictions
from ndeflow.contracts import Batch, DataSpec, Output, Regularizer
from ndeflow.metrics import Averages
from ndeflow.models import NeuralODE, NeuralSDE
from ndeflow.models.failures import failures, remaining
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.regularizers import GlobalError
from ndeflow.tasks import Classification, Forecasting
from ndeflow.tasks.base import Task
from ndeflow.training.signals import Interrupted
from ndeflow.training.tally import Tally
from tests.training import tiny_training as tiny
from tests.training.test_resume import SignalAt

SPEC = DataSpec(("y",), (0.0,), (1.0,), classes=("a", "b"))


class Growing(NeuralODE):
    """dy/dt = rate y^2, not solvable beyond 1 / (rate y0)."""

    def __init__(self, on_failure: str = "mask") -> None:
        super().__init__(solver=RungeKutta(batching="per_sample", on_failure=on_failure, compile="off"))
        self.rate, self.spec = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), SPEC

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * y.square()


class Classes(Growing):
    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return torch.cat([ys[:, -1], -ys[:, -1]], dim=1)


class Noisy(NeuralSDE):
    """Classes by where y ends, dy = rate y^3 dt + width dW: from far out it overflows in a few Euler steps."""

    def __init__(self, **settings: Any) -> None:
        solver = Stochastic("euler", steps=10, on_failure="mask", compile="off")
        super().__init__(noise_size=1, draws=2, solver=solver, **settings)
        self.rate, self.width = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.0, 0.3))
        self.spec = SPEC

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * y**3

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.width.expand_as(y)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return torch.cat([ys[:, -1], -ys[:, -1]], dim=1)


class Ends(Regularizer):
    """The mean of the last state's square, which must be finite."""

    def prepare(self, problem):
        return problem.with_probes(problem.ts[..., -1:] - 0.01)

    def penalty(self, model, output, batch, solved):
        (one,) = solved
        draws, rows = output.prediction.shape[:2] if output.draws else (1, len(output.prediction))
        assert rows == len(batch.index) and draws * rows == len(one.solution.problem.y0)
        return one.solution.ys[:, one.probes].square().mean()


def batch(*starts: float) -> Batch:
    """Series of three times up to 1, the last two to be predicted as 1."""
    rows = len(starts)
    ys = torch.ones(rows, 3, 1, dtype=torch.float64)
    ys[:, 0, 0] = torch.tensor(starts)
    mask, seen = torch.ones_like(ys, dtype=torch.bool), torch.zeros_like(ys, dtype=torch.bool)
    seen[:, 0] = True
    ts = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64).expand(rows, -1)
    return Batch(ts, ys, mask, seen, torch.arange(rows) % 2, None, torch.arange(rows))


def task(**settings) -> Task:
    made = Forecasting(Growing(**settings), torch.optim.SGD, regularizers={"error": GlobalError(), "ends": Ends()})
    made._weights = lambda: {"error": 0.5, "ends": 0.5}
    return made


def gradient(made: Task, data: Batch) -> tuple[float, float]:
    loss = made.objective(data)
    (grad,) = torch.autograd.grad(loss, made.model.rate)
    return loss.item(), grad.item()


def test_loss_penalties_and_gradients_are_those_without_the_failed_row():
    found, expected = gradient(task(), batch(0.1, 4.0, 0.3)), gradient(task(), batch(0.1, 0.3))
    assert found == pytest.approx(expected, rel=1e-9) and math.isfinite(found[1])
    made = task()
    made.objective(batch(0.1, 4.0, 0.3))
    made.meter.commit()
    seen = made.meter.flush()
    assert seen["train/failed"] == pytest.approx(1 / 3) and seen["train/loss"] < 1
    with pytest.raises(SolveError, match="row 1"):
        task(on_failure="raise").objective(batch(0.1, 4.0, 0.3))


def test_a_failed_row_holds_the_last_state_it_reached_and_passes_no_gradient():
    model, data = Growing(), batch(0.1, 4.0)
    output = model(data)
    assert output.prediction.isfinite().all() and failures(output).tolist() == [False, True]
    assert torch.equal(output.prediction[1, 2], output.prediction[1, 1])
    (grad,) = torch.autograd.grad(output.prediction[1].sum(), model.rate)
    assert grad == 0


def test_solutions_of_the_remaining_rows_are_whole():
    model, data = Growing(), batch(0.1, 4.0, 0.3)
    left = remaining(model(data), data, {})
    (solution,), stats = left.output.solutions, left.output.solutions[0].stats
    alone = model(batch(0.1, 0.3)).solutions[0].stats
    assert stats.nfe.tolist() == alone.nfe.tolist() and stats.status.sum() == 0
    count = int(alone.accepted.max())
    assert torch.allclose(stats.times[:, :count], alone.times) and torch.allclose(stats.steps[:, :count], alone.steps)
    assert torch.equal(stats.attempts.accepted.sum(dim=1), alone.accepted)
    assert solution.problem.y0.flatten().tolist() == pytest.approx([0.1, 0.3])
    assert left.batch.index.tolist() == [0, 2]


def test_draws_are_left_out_together():
    model, data = Growing(), batch(0.1, 4.0, 0.3)
    solution = model.solve(torch.tensor([[0.1], [0.2], [0.3], [0.1], [4.0], [0.3]]).double(), data.ts[0])
    left = remaining(Output(solution.ys.unflatten(0, (2, 3)), (solution,), draws=True), data, {})
    assert left.failed.tolist() == [False, True, False] and left.output.prediction.shape == (2, 2, 3, 1)
    assert left.output.solutions[0].ys[:, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.1, 0.3])


def test_a_batch_without_a_row_left_gives_a_zero_that_touches_every_parameter():
    made = task()
    assert gradient(made, batch(4.0, 5.0)) == (0.0, 0.0)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_paths_of_an_sde_that_overflow_leave_a_training_step_as_if_they_had_not_been_there(adjoint):
    whole, good = batch(0.1, 9.0, 0.3, -8.0, -0.2), torch.tensor([0, 2, 4])
    made = Classification(Noisy(adjoint=adjoint), torch.optim.SGD, regularizers={"ends": Ends()})
    made._weights = lambda: {"ends": 0.5}
    losses = [made.objective(data) for data in (whole, whole.of(good))]
    found, wanted = (torch.autograd.grad(loss, list(made.model.parameters())) for loss in losses)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for a, b in zip(found, wanted, strict=True):
        assert b.isfinite() and b != 0
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert failures(made.model(whole)).tolist() == [False, True, False, True, False]


def test_a_batch_of_paths_that_all_overflow_has_zero_gradients():
    model = Noisy()
    made = Classification(model, torch.optim.SGD)
    made.objective(batch(9.0, -8.0)).backward()
    assert model.rate.grad == 0 and model.width.grad == 0
    gradients = torch.autograd.grad(model(batch(9.0, -8.0)).prediction.sum(), list(model.parameters()))
    assert all(gradient == 0 for gradient in gradients)


class Ordered(tiny.TinyLoader):
    """Ten batches of four rows; those that fail are the last of some batches."""

    failing = (2, 2, 0, 0, 0, 0, 1, 0, 0, 0)

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        for count in self.failing[start:]:
            yield batch(*[0.1] * (4 - count), *[4.0] * count)


def fit(run_dir, *extra: Callback, failing: tuple[int, ...] = Ordered.failing) -> None:
    trainer, last = tiny.make_trainer(run_dir, 1, *extra), run_dir / "checkpoints" / "last.ckpt"
    loader = Ordered(trainer)
    loader.failing = failing
    trainer.fit(task(), loader, tiny.Valid([batch(0.1, 0.2)]), ckpt_path=last if last.exists() else None)


def test_many_failures_in_an_epoch_end_the_run_also_a_resumed_one(tmp_path):
    """The rows before the stop, and those of the batch that was cut, are judged, each once: 5 of 40."""
    message = r"12% of the rows of an epoch of training .* lower optimizer\.lr"
    with pytest.raises(SolveError, match=message):
        fit(tmp_path / "whole")
    for step in (1, 6):
        with pytest.raises(Interrupted):
            fit(tmp_path / "cut", SignalAt("on_before_backward", step))
    with pytest.raises(SolveError, match=message):
        fit(tmp_path / "cut")


def test_a_tenth_of_the_rows_may_fail(tmp_path):
    fit(tmp_path, failing=(2, 2, 0, 0, 0, 0, 0, 0, 0, 0))


def test_failures_are_counted_over_all_processes():
    class Two:
        root_device = torch.device("cpu")

        def reduce(self, tensor, group=None, reduce_op="mean"):
            assert reduce_op == "sum"
            return tensor + torch.tensor([3, 10])

    tally = Tally()
    assert tally.share(Two()) == 0.0
    tally.add(torch.tensor([True, False]))
    assert tally.state_dict() == [0, 0]
    tally.commit()
    tally.add(torch.tensor([True, True, False]))
    tally.commit()
    assert tally.share(Two()) == 6 / 15 and tally.state_dict() == [3, 5]


def test_evaluation_leaves_failed_rows_out_and_counts_them():
    scores = []
    for data in (batch(0.1, 4.0, 0.3), batch(0.1, 0.3)):
        made = task()
        made._averages = Averages()
        made._evaluate(data)
        scores.append(made._averages.compute())
    assert scores[0].pop("failed") == pytest.approx(1 / 3) and scores[1].pop("failed") == 0
    assert scores[0].pop("nfe") > scores[1].pop("nfe")
    assert scores[0] == pytest.approx(scores[1])
    made._averages = Averages()
    made._evaluate(batch(4.0))
    assert made._averages.compute() == {"failed": 1.0, "nfe": pytest.approx(made._averages.compute()["nfe"])}


def test_predictions_that_leave_say_nan_where_the_solve_failed():
    data = batch(0.1, 4.0)
    table = predictions.rows(Growing()(data), data, SPEC, ["p", "q"], [["0", "0.1", "1"]] * 2, forecast=True)
    assert [row["y"] == "nan" for row in table] == [False, False, True, True]
    made = Classification(Classes(), torch.optim.SGD)
    rows = predictions.rows(made.model(data), data, SPEC, ["p", "q"], [["0"]] * 2, forecast=False)
    assert rows[0]["prediction"] == "a" and set(list(rows[1].values())[1:]) == {"nan"}
