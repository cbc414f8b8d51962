"""Models of the scores of a diffusion's densities, trained at points with noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.diffusion import Denoised, Potential, Schedule, Score
from ndeflow.generative.reverse import ProbabilityFlow, flow_back, prior_sample
from ndeflow.generative.schedules import VariancePreserving
from ndeflow.models.base import Model
from ndeflow.models.trajectory import first_seen
from ndeflow.nets.mlp import MLP
from ndeflow.nets.time import with_time
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.solution import Adjoint, Solver


class ScoreModel(Model, Score):
    """The score grad log p_t of a diffusion, answered at the batch's points with noise: write `score`.

    Of a series the first seen values x0 (B, d) count. Each row has a time t = t_min + (t_max - t_min) u^time_power with
    u uniform, so that small times are the more likely the larger the power, and noise of its own: in training from
    torch's default generator, in evaluation functions of the noise seed and `batch.index`. Its own dynamics are the
    `ProbabilityFlow`. schedule: None: `VariancePreserving()`. Raises ValueError for a power that is not positive.
    """

    reads_inputs = False

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        time_power: float = 2.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        if time_power <= 0:
            raise ValueError(f"expected a positive time_power, got {time_power}; 1 draws times uniformly")
        self.schedule, self.time_power = schedule or VariancePreserving(), time_power
        object.__setattr__(self, "_dynamics", ProbabilityFlow(self))  # not a submodule: it holds the model itself

    @property
    def dynamics(self) -> nn.Module:
        return self.__dict__["_dynamics"]

    @final
    def forward(self, batch: Batch) -> Denoised:
        x0 = first_seen(batch)
        u, noise = self._draws(x0, batch.index)
        t = self.schedule.t_min + (self.schedule.t_max - self.schedule.t_min) * u**self.time_power
        alpha, sigma, *_ = self.schedule(t)
        x_t = alpha * x0 + sigma * noise
        return Denoised(self.score(t, x_t), t=t, x_t=x_t, noise=noise)

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Points (count, C) of the probability flow, in the model's units, from the prior at t_max to t_min."""
        assert self.spec is not None
        like = next(self.parameters())
        return flow_back(self, prior_sample(self.schedule, count, len(self.spec.channels), seed, like=like),
                         solver=self.solver).ys[:, -1]  # fmt: skip

    def _draws(self, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers (B, 1) and standard normals like x0 (B, d)."""
        if self.training:
            return torch.rand_like(x0[:, :1]), torch.randn_like(x0)
        brownian = Brownian(mix(self.noise_seed, NOISE), index)
        size = {"batch": len(x0), "dtype": x0.dtype, "device": x0.device}
        normals = brownian.normals(0, 1, 1 + x0.shape[1], **size)[0]
        return torch.special.ndtr(normals[:, :1]), normals[:, 1:]


NOISE = 0xD1FF  # in place of a solve's number in the seed of times and noise


def smooth() -> nn.Module:
    """Softplus whose slope changes within a fifth of a unit: with a sharper one second derivatives are spikes."""
    return nn.Softplus(5.0)


@final
class NeuralScore(ScoreModel):
    """score(t, x) = net(t, x, e^-t) / sigma(t), the net of standard size at all times (Song et al. 2021, appendix C).

    channels: d. width, depth, activation: of the network, as of `MLP`; the activation must be curved, since the
    Fokker-Planck equation has second derivatives of the score. Raises ValueError for one that is not, such as ReLU.
    """

    def __init__(
        self,
        channels: int,
        schedule: Schedule | None = None,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = smooth,
        time_power: float = 2.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(schedule, time_power=time_power, solver=solver, adjoint=adjoint)
        check_curved(activation)
        self.net = MLP(channels + 2, channels, width=width, depth=depth, activation=activation)

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(features(t, x)) / self.schedule(t).sigma


@final
class NeuralPotential(ScoreModel, Potential):
    """Phi(t, x) = net(t, x, e^-t), log p_t but for a constant; the score is grad Phi, and so conservative.

    Deveney et al. 2025. channels, width, depth, activation: as of `NeuralScore`.
    """

    def __init__(
        self,
        channels: int,
        schedule: Schedule | None = None,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = smooth,
        time_power: float = 2.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(schedule, time_power=time_power, solver=solver, adjoint=adjoint)
        check_curved(activation)
        hidden = MLP(channels + 2, width, width=width, depth=depth - 1, activation=activation, final=activation())
        self.net = nn.Sequential(hidden, nn.Linear(width, 1, bias=False))  # a constant would change no score

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(features(t, x)).squeeze(-1)


def features(t: Tensor, x: Tensor) -> Tensor:
    """(N, d + 2): e^-t, t and x (N, d); t broadcasts against x."""
    return with_time((-t).exp(), with_time(t, x))


def check_curved(activation: Callable[[], nn.Module]) -> None:
    """Raise ValueError for an activation without a second derivative anywhere, made of straight pieces."""
    made = activation().double()
    second = torch.func.vmap(torch.func.grad(torch.func.grad(made)))
    if not bool(second(torch.linspace(-2.9, 3.1, 25, dtype=torch.float64)).any()):
        raise ValueError(
            f"expected a smooth activation, got {type(made).__name__}, whose second derivative is 0; use Softplus(5), "
            "Tanh or SiLU"
        )
