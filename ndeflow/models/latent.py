"""Latent differential equations of irregular series, trained by variational inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, GaussianOutput
from ndeflow.fields.ode import MLPField
from ndeflow.models.base import Model
from ndeflow.models.coder import SeriesCoder
from ndeflow.models.draws import check_draws, draw_index, solve_starts
from ndeflow.models.posterior import PathKL, SteeredSDE
from ndeflow.nets.recurrent import last_seen
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.paths import ControlPath, Piecewise
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.solution import Adjoint, Solution, Solver


class LatentModel(Model):
    """z0 ~ q(z0 | seen), a differential equation for z over the times of the series, y ~ N(decoder(z), std^2).

    The answer is a `GaussianOutput`. Its kl is that of the whole posterior from the prior, in expectation over the
    draws: of z0 in closed form, plus what the dynamics add along each path. A draw is a function of the run's seed, the
    training step and the row's `batch.index`. latent: components of z. hidden: of the encoder. width, depth: of the
    networks. draws, eval_draws: paths a row, in training and in evaluation; more than one: predictions are (S, B, ...).
    """

    def __init__(
        self,
        channels: int,
        *,
        inputs: int,
        latent: int,
        hidden: int,
        width: int,
        draws: int,
        eval_draws: int,
        solver: Solver | None,
        adjoint: Adjoint | None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        check_draws(draws, eval_draws)
        self.draws, self.eval_draws = draws, eval_draws
        self.coder = SeriesCoder(channels, inputs=inputs, latent=latent, hidden=hidden, width=width)

    @property
    def integrands(self) -> Sequence[tuple[Integrand, None]]:
        """What of the divergence gathers along a path; nothing by default."""
        return ()

    @abstractmethod
    def context(self, batch: Batch, codes: Tensor) -> Any:
        """What the solve is conditioned on, from the encoder's codes (B, T, H)."""

    def forward(self, batch: Batch) -> GaussianOutput:
        draws = self.draws if self.training else self.eval_draws
        posterior = self.coder(batch)
        normals = self._normals(batch, 0, (draws, *posterior.mean.shape), posterior.mean)
        starts, context = posterior.mean + posterior.std * normals, self.context(batch, posterior.codes)
        solution = solve_starts(self, starts, batch.ts, context, batch.index, self.integrands)
        along = solution.integrals[:, -1].sum(dim=-1).unflatten(0, starts.shape[:2]).mean(dim=0)
        return self._decoded(solution, batch, draws, self.coder.start_kl(posterior) + along)

    def _decoded(self, solution: Solution, batch: Batch, draws: int, kl: Tensor) -> GaussianOutput:
        mean, std = self.coder.decoder(solution.ys.unflatten(0, (draws, -1))), self.coder.log_std.exp()
        prediction, many = mean + std * self._normals(batch, 1, mean.shape, mean), draws > 1
        return GaussianOutput(prediction if many else prediction[0], (solution,), kl=kl, draws=many, mean=mean, std=std)

    def _normals(self, batch: Batch, step: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normals (S, B, ...) of this forward pass that no solve draws; `step` tells them apart."""
        draws, rows, *rest = shape
        noise = Brownian(mix(self.noise_seed, 0), draw_index(batch.index, draws))
        size = torch.Size(rest).numel()
        found = noise.normals(step, 1, size, batch=draws * rows, dtype=like.dtype, device=like.device)
        return found.view(draws, rows, *rest)


@final
class LatentODE(LatentModel):
    """dz/dt = h(z), |h| < 1, from a sampled start: what is seen reaches a path through its start alone.

    Rubanova, Chen, Duvenaud 2019, "Latent ordinary differential equations for irregularly-sampled time series".
    """

    def __init__(
        self,
        channels: int,
        *,
        inputs: int = 0,
        latent: int = 4,
        hidden: int = 24,
        width: int = 64,
        depth: int = 1,
        draws: int = 1,
        eval_draws: int = 64,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(channels, inputs=inputs, latent=latent, hidden=hidden, width=width, draws=draws,
                         eval_draws=eval_draws, solver=solver, adjoint=adjoint)  # fmt: skip
        self.velocity = MLPField(latent, width=width, depth=depth, time=False, bounded=True)

    @property
    def dynamics(self) -> nn.Module:
        return self.velocity

    def context(self, batch: Batch, codes: Tensor) -> Any:
        return None


@final
class LatentSDE(LatentModel):
    """A latent path with noise: prior dz = h(z) dt + sigma(z) dW, posterior dz = f(z, code) dt + sigma(z) dW.

    Both in Ito's sense. Between two times f is told the encoder's code at the later one, which has read what is seen
    from there on; what was seen before it, z itself knows. After the last seen time f = h: a forecast is a draw of the
    prior from where the posterior has arrived, and adds nothing to the divergence, which gathers
    E int |(f - h) / sigma|^2 / 2 dt along the path (`PathKL`). Li, Wong, Chen, Duvenaud 2020, "Scalable gradients for
    stochastic differential equations", section 5. scale: the largest sigma (`SteeredSDE`). Save times are knots of the
    codes, so that fixed-step solvers take their steps between them.
    """

    def __init__(
        self,
        channels: int,
        *,
        inputs: int = 0,
        latent: int = 4,
        hidden: int = 24,
        width: int = 64,
        depth: int = 1,
        scale: float = 1.0,
        draws: int = 1,
        eval_draws: int = 64,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(channels, inputs=inputs, latent=latent, hidden=hidden, width=width, draws=draws,
                         eval_draws=eval_draws, solver=solver, adjoint=adjoint)  # fmt: skip
        self.sde = SteeredSDE(latent, inputs=hidden, width=width, depth=depth, scale=scale)
        self.path_kl = PathKL()

    @property
    def dynamics(self) -> nn.Module:
        return self.sde

    @property
    def integrands(self) -> Sequence[tuple[Integrand, None]]:
        return ((self.path_kl, None),)

    def context(self, batch: Batch, codes: Tensor) -> ControlPath:
        """The path that steers `SteeredSDE`, constant between times: code and, up to the last seen time, 1."""
        ends = torch.arange(1, codes.shape[1], device=codes.device)
        informed = (ends <= last_seen(batch.seen)[:, None]).to(codes.dtype)
        return Piecewise(batch.ts, (torch.cat([codes[:, 1:], informed.unsqueeze(-1)], dim=-1),))
