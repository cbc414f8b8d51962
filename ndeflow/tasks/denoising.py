"""Scores of a diffusion, learned by denoising, and samples by both of its reverse equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow import plots
from ndeflow.contracts import Batch, Output, Regularizer
from ndeflow.diffusion import Denoised, Potential
from ndeflow.generative.likelihood import log_likelihood
from ndeflow.generative.reverse import diffuse_back, flow_back, prior_sample
from ndeflow.generative.weightings import VarianceWeighting, Weighting
from ndeflow.metrics import Weighted, sliced_wasserstein
from ndeflow.models.score import ScoreModel
from ndeflow.models.trajectory import first_seen
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.segments import wide
from ndeflow.numerics.solution import Solution
from ndeflow.regularizers.collocation import UniformBox
from ndeflow.regularizers.fokker_planck import log_density_residual, score_residual
from ndeflow.tasks.base import EVALUATION, Optimizer, Scheduler, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 10_000  # in a figure


@final
class DenoisingScoreMatching(Task):
    """min E lambda(t) |s(t, x_t) + eps / sigma(t)|^2 over x0 of the data, t of the model, x_t = alpha x0 + sigma eps.

    The score of x_t given x0 is -eps / sigma, and its mean given x_t the score of p_t (Vincent 2011, "A connection
    between score matching and denoising autoencoders"; Song et al. 2021, eq. 7). weighting: lambda; None: sigma^2.

    Of a test it reports, of as many samples as half of the test points are: sliced Wasserstein-2 distances of the
    reverse SDE's samples (`sde_steps` of Heun's method) and of the probability flow's from the first half (sde_truth,
    ode_truth), of one half from the other (floor), and of SDE from flow (gap), which is 0 but for the floor where the
    score is the exact one of some diffusion; net_gap = sqrt(max(gap^2 - floor^2, 0)); nll, the mean of -log q of the
    first half under the probability flow, in nats of the data's units; mean squares of the residuals of the
    Fokker-Planck equation over `box`: score_residual, and log_density_residual where there is a potential; and
    evaluations a sample (sde_nfe, ode_nfe).
    """

    model: ScoreModel

    def __init__(
        self,
        model: ScoreModel,
        optimizer: Optimizer,
        *,
        weighting: Weighting | None = None,
        sde_steps: int = 400,
        box: UniformBox | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, regularizers=regularizers, scheduler=scheduler, seed=seed)
        if sde_steps < 2:
            raise ValueError(f"expected at least two steps of the reverse SDE, got sde_steps={sde_steps}")
        self.weighting, self.sde_steps = weighting or VarianceWeighting(), sde_steps
        self.box = box or UniformBox(count=4096)
        self._points: list[Tensor] = []

    def loss(self, output: Output, batch: Batch) -> Tensor:
        if not isinstance(output, Denoised):
            raise ValueError(f"expected a model of a score, got {type(self.model).__name__}; use model=neural_score")
        schedule = self.model.schedule
        error = output.prediction + output.noise / schedule(output.t).sigma
        return (self.weighting.weight(schedule, output.t) * error.square()).sum(dim=1).mean()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        return {}

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        """Of points of the plane: data, and as many samples by either equation."""
        truth = first_seen(batch)[:SAMPLES]
        if truth.shape[1] != 2:
            return {}
        samples = {"reverse SDE": self.by_sde(truth), "probability flow": self.by_flow(truth).ys[:, -1]}
        clouds = {"data": truth, **samples}
        return {"samples": plots.points({name: self.spec.to_data_units(x) for name, x in clouds.items()})}

    def by_sde(self, like: Tensor) -> Tensor:
        """(N, d) samples by the reverse SDE, as many as `like` (N, d)."""
        start = self._prior(like, 0)
        return diffuse_back(self.model, start, steps=self.sde_steps, seed=mix(self.seed, EVALUATION, 1))

    def by_flow(self, like: Tensor) -> Solution:
        """The probability flow to (N, d) samples, as many as `like` (N, d), at its last time."""
        return flow_back(self.model, self._prior(like, 2), solver=self.model.solver)

    def _prior(self, like: Tensor, number: int) -> Tensor:
        count, size = like.shape
        return prior_sample(self.model.schedule, count, size, mix(self.seed, EVALUATION, number), like=like)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._points = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self._points.append(first_seen(batch))

    def on_test_epoch_end(self) -> None:
        points = torch.cat(self._points)
        self._averages.add({**self._samples(points), **self._residuals(points)})
        super().on_test_epoch_end()

    def _samples(self, points: Tensor) -> dict[str, Tensor]:
        truth, other = points[: len(points) // 2 * 2].chunk(2)
        sde, solution = self.by_sde(truth), self.by_flow(truth)
        flow = solution.ys[:, -1]
        pairs = {"sde_truth": (sde, truth), "ode_truth": (flow, truth), "gap": (sde, flow), "floor": (other, truth)}
        units = self.spec.to_data_units
        found = {name: sliced_wasserstein(units(wide(a)), units(wide(b))) for name, (a, b) in pairs.items()}
        excess = found["gap"].square() - found["floor"].square()
        steps = points.new_tensor(2.0 * self.sde_steps - 1)  # the last one evaluates the score once
        nll = points.new_tensor(self.spec.std).log().sum() - log_likelihood(self.model, truth, solver=self.model.solver)
        found |= {"net_gap": excess.clamp(min=0.0).sqrt(), "nll": nll}
        return {**found, "sde_nfe": steps, "ode_nfe": solution.stats.nfe.double()}

    def _residuals(self, points: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator(points.device).manual_seed(0)
        t, x, _ = self.box.draw(self.model.schedule, points, generator)
        found: dict[str, Any] = {"score_residual": score_residual(self.model, t, x)[0].square().sum(dim=1)}
        if isinstance(self.model, Potential):
            found["log_density_residual"] = log_density_residual(self.model, t, x)[0].square()
        return found
