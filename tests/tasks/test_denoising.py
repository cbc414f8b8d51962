"""Denoising score matching: the loss against its formula, and the test's report for scores that are exact."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, DataSpec, Output
from ndeflow.data import NineGaussians
from ndeflow.diffusion import Potential
from ndeflow.generative.schedules import OrnsteinUhlenbeck
from ndeflow.generative.weightings import LikelihoodWeighting
from ndeflow.models.score import ScoreModel
from ndeflow.regularizers import UniformBox
from ndeflow.tasks import DenoisingScoreMatching
from tests.generative.diffusions import Mixture
from tests.training import tiny_training as tiny

OU = OrnsteinUhlenbeck()
CENTRES = [[NineGaussians.UNIT * v for v in centre] for centre in NineGaussians.CENTRES]


class Exact(ScoreModel, Potential):
    """The score of nine Gaussians, or of ones of another spread; its one parameter counts for nothing."""

    def __init__(self, spread: float = 1.0) -> None:
        super().__init__(OU)
        self.known = Mixture(OU, CENTRES, [spread * NineGaussians.STD] * 9, [1 / 9] * 9)
        self.idle = nn.Parameter(torch.zeros(()))

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        return self.known.potential(t.double(), x.double()).to(x.dtype) + 0.0 * self.idle


def task(model: ScoreModel, **options) -> DenoisingScoreMatching:
    box = UniformBox(count=64)
    made = DenoisingScoreMatching(model, partial(torch.optim.SGD, lr=0.1), sde_steps=40, box=box, **options)
    made.spec = DataSpec(("x", "y"), (0.0, 0.0), (1.0, 1.0))
    return made


def batch(rows: int = 4000) -> Batch:
    return NineGaussians(train_points=rows).train


def test_the_loss_is_the_weighted_square_of_the_error() -> None:
    model, data = Exact(), batch(50)
    out = model(data)
    square = (out.prediction + out.noise / OU(out.t).sigma).square().sum(dim=1)
    torch.testing.assert_close(task(model).loss(out, data), (OU(out.t).sigma.square()[:, 0] * square).mean())
    torch.testing.assert_close(task(model, weighting=LikelihoodWeighting()).loss(out, data), square.mean())
    with pytest.raises(ValueError, match="expected a model of a score"):
        task(model).loss(Output(out.prediction), data)


def test_the_exact_score_has_the_least_loss() -> None:
    data, losses = batch(), []
    for spread in (0.8, 1.0, 1.25):
        model = Exact(spread).eval()
        losses.append(float(task(model).loss(model(data), data)))
    assert losses[1] < min(losses[0], losses[2]) - 1e-3


def report(model: ScoreModel, folder: Path) -> dict[str, float]:
    trainer = tiny.make_trainer(folder)
    trainer.test(task(model), datamodule=NineGaussians(train_points=10, test_points=4001), verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}


def nll() -> float:
    return NineGaussians(train_points=10, test_points=4001).references()["reference/nll"]


def test_the_report_of_an_exact_score_is_that_of_the_truth(tmp_path) -> None:
    found = report(Exact(), tmp_path)
    for name in ("sde_truth", "ode_truth", "gap"):
        assert found[name] < 2.5 * found["floor"], name
    assert found["net_gap"] == pytest.approx(math.sqrt(max(found["gap"] ** 2 - found["floor"] ** 2, 0)), abs=1e-6)
    assert found["score_residual"] < 1e-6 and found["log_density_residual"] < 1e-6
    assert found["nll"] == pytest.approx(nll(), abs=0.03)  # the points are judged as if they had noise of t_min
    assert found["sde_nfe"] == 79 and found["ode_nfe"] > 20


def test_the_report_tells_a_wrong_score(tmp_path) -> None:
    """Of another spread it is that of another diffusion: SDE and flow agree, and are not the truth."""
    found = report(Exact(3.0), tmp_path)
    assert min(found["sde_truth"], found["ode_truth"]) > 3 * found["floor"] and found["gap"] < 2.5 * found["floor"]


def test_distances_do_not_depend_on_an_offset_of_the_data() -> None:
    made, points, found = task(Exact().float().eval()), batch(200).ys[:, 0].float(), []
    for mean in (0.0, 1e8):
        made.spec = DataSpec(channels=("x", "y"), mean=(mean, mean), std=(1.0, 1.0))
        found.append(float(made._samples(points)["sde_truth"]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_samples_are_drawn(tmp_path) -> None:
    model, data = Exact().eval(), batch(300)
    with torch.no_grad():
        assert set(task(model).figures(model(data), data)) == {"samples"}
    with pytest.raises(ValueError, match="expected at least two steps"):
        DenoisingScoreMatching(model, torch.optim.SGD, sde_steps=1)
