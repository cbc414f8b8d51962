"""What a prediction costs is what its solves say, whatever the model was doing before."""

from __future__ import annotations

import pytest
import torch

from ndeflow import AdaptiveStochastic, RungeKutta, Stochastic, TorchDiffEq
from ndeflow.cost import PredictionCost, described
from ndeflow.models import CDEClassifier, ODEForecaster
from tests.models.series import irregular_batch


def test_it_is_that_of_the_batch_and_leaves_the_model_as_it_was():
    batch = irregular_batch()
    model = CDEClassifier(2, 3, hidden=4, width=4, solver=RungeKutta(rtol=1e-3, atol=1e-3, compile="off")).train()
    cost = PredictionCost.of(model, batch)
    assert model.training and all(p.grad is None for p in model.parameters())
    (solution,) = model.eval()(batch).solutions
    assert cost.nfe == float(solution.stats.nfe.double().mean()) and cost.rows == 5 and cost.seconds > 0
    assert cost.results() == {"predict/nfe": cost.nfe, "time/seconds_per_prediction": cost.seconds, "predict/rows": 5.0}
    said = f"a batch of 5 takes {cost.nfe:.4g} evaluations, {1e3 * cost.seconds:.3g} ms in float32 with dopri5, "
    assert str(cost) == said + "rtol 0.001, atol 0.001"


@pytest.mark.parametrize(("each", "calls"), [(0.1, 3), (0.6, 2), (5.0, 1)])
def test_long_calls_are_few(each, calls, monkeypatch):
    made = []
    model = ODEForecaster(2, hidden=4, width=4)
    model.register_forward_hook(lambda *_: made.append(torch.is_grad_enabled()))
    ticks = iter(x for n in range(9) for x in (n * each, (n + 1) * each))
    monkeypatch.setattr("ndeflow.cost.time", type("Clock", (), {"perf_counter": staticmethod(lambda: next(ticks))}))
    assert PredictionCost.of(model, irregular_batch()).seconds == pytest.approx(each)
    assert made == [False] * calls


def test_solvers_in_words():
    assert described(RungeKutta("tsit5", 1e-6, 1e-7)) == "tsit5, rtol 1e-06, atol 1e-07"
    assert described(Stochastic("milstein", steps=4)) == "milstein, steps 4"
    assert described(AdaptiveStochastic()).startswith("heun, rtol ")
    assert described(TorchDiffEq("dopri8")).startswith("dopri8")
