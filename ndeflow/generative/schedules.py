"""Published ways in which a diffusion mixes data and noise over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ndeflow.diffusion import Level, Schedule


@final
@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """dx = -beta x / 2 dt + sqrt(beta) dW with beta linear in t: alpha^2 + sigma^2 = 1 (Song et al. 2021, eq. 11).

    beta_min, beta_max: beta at times 0 and 1.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def level(self, t: Tensor) -> Level:
        slope = self.beta_max - self.beta_min
        beta, log_alpha = self.beta_min + slope * t, -(slope * t / 4 + self.beta_min / 2) * t
        alpha, sigma = log_alpha.exp(), (-(2 * log_alpha).expm1()).sqrt()
        return Level(alpha, sigma, -alpha * beta / 2, alpha.square() * beta / (2 * sigma))

    @property
    def prior_std(self) -> float:
        return 1.0


@final
@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """dx = g dW with sigma = sigma_min (sigma_max / sigma_min)^t and alpha = 1 (Song et al. 2021, eq. 9)."""

    t_min: float = 1e-5
    t_max: float = 1.0
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def level(self, t: Tensor) -> Level:
        growth = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * (growth * t).exp()
        return Level(torch.ones_like(t), sigma, torch.zeros_like(t), sigma * growth)

    @property
    def prior_std(self) -> float:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** self.t_max


@final
@dataclass(frozen=True)
class OrnsteinUhlenbeck(Schedule):
    """dx = -x dt + dW: alpha = e^-t, sigma^2 = (1 - e^-2t) / 2.

    Deveney et al. 2025, "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation".
    """

    t_min: float = 0.01
    t_max: float = 3.0

    def level(self, t: Tensor) -> Level:
        alpha, sigma = (-t).exp(), (-(-2 * t).expm1() / 2).sqrt()
        return Level(alpha, sigma, -alpha, alpha.square() / (2 * sigma))

    @property
    def prior_std(self) -> float:
        return math.sqrt(0.5)
