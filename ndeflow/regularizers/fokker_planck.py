"""Penalties that hold a learned score to the Fokker-Planck equation of its diffusion.

The densities p_t of dx = f x dt + g dW on R^d follow d_t p = -div(f x p) + g^2 / 2 lap p.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Output, Regularizer, Solved
from ndeflow.diffusion import Denoised, Potential, Score
from ndeflow.numerics.fused import Fused
from ndeflow.regularizers.collocation import Collocation, NoisedPoints

Probes = Sequence[Tensor | None]
EXACT = 4  # dimensions, up to which a whole divergence costs little


def log_density_residual(model: Potential, t: Tensor, x: Tensor, probes: Probes = (None,)) -> list[Tensor]:
    """R = d_t Phi + div(f x) + f x . s - g^2 / 2 (lap Phi + |s|^2), with s = grad Phi: 0 for Phi = log p_t.

    Deveney et al. 2025, "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation".
    A constant in time added to Phi leaves R as it is, a function of time does not.

    t: (N, 1). x: (N, d). probes: for each v (N, d) one R with Hutchinson's estimate v' H v of lap Phi; for None the
    exact one. Returns an R (N,) for each probe.
    """
    (slope, s), pull = torch.func.vjp(lambda z: slopes(model, t, z), x)[:2]
    f, half = _coefficients(model, t)
    flat = slope.squeeze(-1) + f * (x.shape[1] + (x * s).sum(dim=1)) - half * s.square().sum(dim=1)
    return [flat - half * trace(lambda v: pull((torch.zeros_like(slope), v))[0], x, probe) for probe in probes]


def slopes(model: Potential, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """d_t Phi (N, 1) and grad Phi (N, d)."""
    return torch.func.grad(lambda t, x: model.potential(t, x).sum(), argnums=(0, 1))(t, x)


def score_residual(model: Score, t: Tensor, x: Tensor, probes: Probes = (None,)) -> list[Tensor]:
    """eps = d_t s - grad [g^2 / 2 (div s + |s|^2) - f x . s - div(f x)]: 0 for s = grad log p_t.

    Lai et al. 2023, "FP-Diffusion: improving score-based diffusion models by enforcing the underlying score
    Fokker-Planck equation", eq. 9. It is grad R of `log_density_residual` where s = grad Phi, and governs the gap
    between the marginals of the probability flow and of the reverse SDE. d_t s is exact, in forward mode.

    t, x, probes: as there, for div s. Returns an eps (N, d) for each probe.
    """
    f, half = _coefficients(model, t)

    def right(x: Tensor, probe: Tensor | None) -> Tensor:
        s, pull = torch.func.vjp(lambda z: model.score(t, z), x)[:2]
        divergence = trace(lambda v: pull(v)[0], x, probe)
        return (half * (divergence + s.square().sum(dim=1)) - f * (x * s).sum(dim=1)).sum()

    t = t.contiguous()  # forward mode refuses one that is expanded
    slope = torch.func.jvp(lambda t: model.score(t, x), (t,), (torch.ones_like(t),))[1]
    return [slope - torch.func.grad(right)(x, probe) for probe in probes]


def trace(pull: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor | None) -> Tensor:
    """(N,) traces of the Jacobians J at x (N, d) of which `pull` multiplies rows v' J; v' J v of a probe v."""
    if probe is not None:
        return (pull(probe) * probe).sum(dim=1)
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.stack([pull(e.expand_as(x))[:, i] for i, e in enumerate(basis)]).sum(dim=0)


def rademacher(x: Tensor) -> Tensor:
    """Random signs shaped like x, from torch's default generator."""
    return torch.randint(2, x.shape, device=x.device).to(x.dtype) * 2 - 1


class FokkerPlanck(Regularizer):
    """The weighted mean square of a residual of the Fokker-Planck equation.

    collocation: where, and how much it counts there; None: `NoisedPoints()`. exact: whole divergences, d products
    with the Jacobian; otherwise Hutchinson's estimates with two independent probes of signs, and the product of the two
    residuals, whose mean is the square's while one residual's own square has its variance added. None: exact in up to
    4 dimensions. compiled: penalty and gradient by one program, see `Fused`: it takes half a minute to make, and
    trainings of a few thousand steps do better without.
    """

    def __init__(
        self,
        weight: float | Decay = 1.0,
        *,
        collocation: Collocation | None = None,
        exact: bool | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(weight)
        self.collocation, self.exact = collocation or NoisedPoints(), exact
        self._mean = Fused(self.mean_square) if compiled else self.mean_square

    @abstractmethod
    def residuals(self, model: Any, t: Tensor, x: Tensor, probes: Probes) -> list[Tensor]:
        """(N,) or (N, d) for each of the probes."""

    @final
    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        if not isinstance(output, Denoised):
            raise ValueError(
                f"expected the noised points of a model of a score, got {type(output).__name__}; use model=neural_score"
            )
        t, x, weight = self.collocation.points(output, model.schedule)
        exact = x.shape[1] <= EXACT if self.exact is None else self.exact
        return self._mean(model, t, x, weight, *(() if exact else (rademacher(x), rademacher(x))))

    @final
    def mean_square(self, model: Any, t: Tensor, x: Tensor, weight: Tensor, *probes: Tensor) -> Tensor:
        """The mean over N points of weight (N,) times the residual's square; exact without probes (N, d)."""
        found = self.residuals(model, t, x, probes or (None,))
        square = (found[0] * found[-1]).reshape(x.shape[0], -1).sum(dim=1)
        return (weight * square).mean()


@final
class LogDensityResidual(FokkerPlanck):
    """mean w R^2, with R of `log_density_residual`, of a model with a potential; see `FokkerPlanck`."""

    def check(self, model: Any) -> None:
        if not isinstance(model, Potential):
            raise ValueError(
                f"expected a model of the log-density for LogDensityResidual, got {type(model).__name__}; use "
                "model=neural_potential, or regularizer=score_residual with a model of the score"
            )

    def residuals(self, model: Any, t: Tensor, x: Tensor, probes: Probes) -> list[Tensor]:
        return log_density_residual(model, t, x, probes)


@final
class ScoreResidual(FokkerPlanck):
    """mean w |eps|^2, with eps of `score_residual`, of any model of the score; see `FokkerPlanck`."""

    def check(self, model: Any) -> None:
        if not isinstance(model, Score):
            raise ValueError(
                f"expected a model of a diffusion's score for ScoreResidual, got {type(model).__name__}; use "
                "model=neural_score or model=neural_potential"
            )

    def residuals(self, model: Any, t: Tensor, x: Tensor, probes: Probes) -> list[Tensor]:
        return score_residual(model, t, x, probes)


def _coefficients(model: Score, t: Tensor) -> tuple[Tensor, Tensor]:
    """f and g^2 / 2, each (N,)."""
    f, g_squared = model.schedule.coefficients(t)
    return f.squeeze(-1), 0.5 * g_squared.squeeze(-1)
