"""An activation that never stretches."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

SHRINK = 0.909  # the steepest slope of x sigmoid(x) is 1.0998


@final
class LipSwish(nn.Module):
    """0.909 x sigmoid(x): smooth, of slope at most 1. Chen, Behrmann, Duvenaud, Jacobsen 2019, "Residual flows"."""

    def forward(self, x: Tensor) -> Tensor:
        return SHRINK * nn.functional.silu(x)
