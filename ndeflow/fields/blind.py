"""A stochastic right-hand side that does not see what it is conditioned on."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from ndeflow.numerics.field import SDE


@final
class Blind(SDE):
    """dy = drift(t, y) dt + diffusion(t, y) dW whatever the context: a baseline that tells what a control path adds.

    Steps still end at the path's knots, so that it differs from `ByValue` of the same SDE in what the drift sees alone.
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(noise_type=sde.noise_type, sde_type=sde.sde_type, noise_size=sde.noise_size)
        self.sde = sde

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        return self.sde.drift(t, y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.sde.diffusion(t, y)
