"""Stable neural SDEs: Oh, Lim, Kim 2024, "Stable neural stochastic differential equations in analyzing irregular time
series data".

Three classes of diagonal Ito SDEs in whose noise a network of time alone, sigma(t), is added (`Langevin`) or multiplies
the state (`LinearNoise`, `Geometric`). x is a control path's value, which the drift alone sees.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ndeflow.fields.dissipative import Dissipation, DissipativeField
from ndeflow.fields.hidden import HiddenSDE
from ndeflow.fields.ode import MLPField
from ndeflow.nets.volatility import RectifiedVolatility, Volatility


class StableSDE(HiddenSDE, ABC):
    """A drift gamma and a noise sigma(t) > 0, both networks.

    z: (B, size). inputs: channels of x (B, inputs); 0: none is given. width, depth, activation: of gamma, as in
    `MLPField`; width: of sigma too. scale: sigma < scale, by a sigmoid; None: by softplus, unbounded.
    dissipation: gamma is a `DissipativeField`, whose network has LipSwish in place of `activation`; then two solutions
    draw together, as the class says. None: gamma is an `MLPField`, and nothing is promised.
    released: the clamps of the published code, tanh around drift and diffusion and a `RectifiedVolatility`.
    Raises ValueError for options that exclude each other, and where the noise undoes what the drift dissipates.
    """

    timed: ClassVar[bool]
    multiplicative: ClassVar[bool]

    def __init__(
        self,
        size: int,
        *,
        inputs: int = 0,
        width: int = 64,
        depth: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
        scale: float | None = None,
        dissipation: Dissipation | None = None,
        released: bool = False,
    ) -> None:
        super().__init__(size)
        if dissipation is not None:
            check_dissipation(dissipation, released, scale, self.multiplicative)
        sizes: dict[str, Any] = {"inputs": inputs, "width": width, "depth": depth, "time": self.timed}
        self.gamma = (
            MLPField(size, **sizes, activation=activation)
            if dissipation is None
            else DissipativeField(size, dissipation, **sizes)
        )
        self.sigma = volatility(size, width, scale, released)
        self.clamp = nn.Tanh() if released else nn.Identity()

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.clamp(self.gamma(t, y, *context))


@final
class Langevin(StableSDE):
    """dz = gamma(z, x) dt + sigma(t) dW. The Langevin-type SDE of Oh, Lim, Kim 2024.

    With a dissipation, for solutions z, z' of one Brownian motion and paths x, x', on every path and at all T,
    |z(T) - z'(T)| <= exp(-K T) |z(0) - z'(0)| + lipschitz int_0^T exp(-K (T - s)) |x(s) - x'(s)| ds.
    Euler's steps h keep the first term's bound where h rate <= 1, for their factor is at most 1 - h K.
    """

    timed = False
    multiplicative = False

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.clamp(self.sigma(t, y))


@final
class LinearNoise(StableSDE):
    """dz = gamma(t, z, x) dt + sigma(t) z dW. The linear noise SDE of Oh, Lim, Kim 2024.

    With a dissipation and 2 K > scale^2, for solutions z, z' of one Brownian motion and path x,
    E|z(T) - z'(T)|^2 <= exp(-(2 K - scale^2) T) E|z(0) - z'(0)|^2.
    """

    timed = True
    multiplicative = True

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.clamp(self.sigma(t, y) * y)


@final
class Geometric(HiddenSDE):
    """dz = z gamma(t, z, x) dt + z sigma(t) dW, |gamma| < bound. The geometric SDE of Oh, Lim, Kim 2024.

    No component changes its sign, and 0 is absorbing; on average log|z| falls where gamma < sigma^2 / 2. gamma = bound
    tanh(network): z times a free network may grow as |z|^2, to infinity in finite time.
    log_state: what is solved for is y = (log|z|, sign z), (B, 2 size), d log|z| = (gamma - sigma^2 / 2) dt + sigma dW,
    whose steps keep the sign, exact where gamma and sigma are constant; those of z itself lose it where sigma is large.
    Other options: as of `StableSDE`; the released drift is tanh(network tanh(z)), without `bound`, and keeps no sign.
    Raises ValueError for a bound that is not positive and finite, and for a released log_state or scale.
    """

    def __init__(
        self,
        size: int,
        *,
        inputs: int = 0,
        width: int = 64,
        depth: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
        bound: float = 1.0,
        scale: float | None = None,
        log_state: bool = False,
        released: bool = False,
    ) -> None:
        super().__init__(size, coordinates=2 * size if log_state else size)
        if not 0 < bound < math.inf:
            raise ValueError(f"expected a positive, finite bound of gamma, got {bound}; without one z explodes")
        if log_state and released:
            raise ValueError("expected log_state or released, got both; the published code solves for z itself")
        self.bound, self.log_state, self.released = bound, log_state, released
        self.net = MLPField(size, inputs=inputs, width=width, depth=depth, activation=activation)
        self.sigma = volatility(size, width, scale, released)

    def state(self, z: Tensor) -> Tensor:
        tiny = torch.finfo(z.dtype).tiny
        return torch.cat([z.abs().clamp(min=tiny).log(), z.sign()], dim=-1) if self.log_state else z

    def read(self, y: Tensor) -> Tensor:
        if not self.log_state:
            return y
        magnitude, sign = y.chunk(2, dim=-1)
        return magnitude.exp() * sign

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        z = self.read(y)
        rate = self.net(t, z, *context)
        if self.released:
            return torch.tanh(rate * z.tanh())
        rate = self.bound * rate.tanh()
        if not self.log_state:
            return rate * z
        return with_still_sign(rate - 0.5 * self.sigma(t, z).square())

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        z = self.read(y)
        sigma = self.sigma(t, z)
        if self.log_state:
            return with_still_sign(sigma)
        return torch.tanh(sigma * z) if self.released else sigma * z


def with_still_sign(x: Tensor) -> Tensor:
    """(x, 0): of the coordinates (log|z|, sign z) the sign stays as it is."""
    return torch.cat([x, torch.zeros_like(x)], dim=-1)


def volatility(size: int, width: int, scale: float | None, released: bool) -> nn.Module:
    """sigma(t). Raises ValueError for a scale of the released one."""
    if not released:
        return Volatility(size, width=width, scale=scale)
    if scale is not None:
        raise ValueError(f"expected no scale with released=True, whose tanh bounds the diffusion, got {scale}")
    return RectifiedVolatility(size, width=width)


def check_dissipation(dissipation: Dissipation, released: bool, scale: float | None, multiplicative: bool) -> None:
    """Raise ValueError unless the drift contracts, and faster than noise that multiplies the state tears apart."""
    if released:
        raise ValueError("expected a dissipation or released=True, got both; the published tanh undoes the dissipation")
    limit = math.sqrt(2 * dissipation.contraction)
    if multiplicative and not (scale is not None and scale < limit):
        raise ValueError(
            f"expected a scale of sigma below sqrt(2 (rate - lipschitz)) = {limit:.4g}, got {scale}; with more noise "
            "the mean square of a difference grows: give a smaller scale or a larger rate"
        )
