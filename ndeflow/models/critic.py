"""A controlled differential equation as a critic of paths."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.fields.cde import CDEField
from ndeflow.models.driven import PathDriven, path_channels
from ndeflow.nets.lipswish import LipSwish
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solution import Adjoint, Solver


@final
class CDECritic(PathDriven):
    """H0 = xi(X0), dH = f(H) dX, D = m . H(T): a score (B,) of paths X = (time, Y), linear between a batch's times.

    Differentiable in the values of Y. `LipSwish` between the layers of f, tanh after them. Kidger, Foster, Li,
    Oberhauser, Lyons 2021, "Neural SDEs as infinite-dimensional GANs", eq. 5. solver: None: one midpoint step
    a piece of the path.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 16,
        width: int = 32,
        depth: int = 1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(interpolation=Linear.through, solver=solver or FixedRungeKutta("midpoint"), adjoint=adjoint)
        path = path_channels(channels, counts=False)
        sizes: dict[str, Any] = {"width": width, "depth": depth, "activation": LipSwish}
        self.initial = MLP(path, hidden, **sizes)
        self.flow = Controlled(CDEField(hidden, path, **sizes))
        self.readout = nn.Linear(hidden, 1)

    @property
    def dynamics(self) -> nn.Module:
        return self.flow

    def encode(self, x0: Tensor, batch: Batch) -> Tensor:
        return self.initial(x0)

    def decode(self, zs: Tensor, batch: Batch) -> Tensor:
        return self.readout(zs[:, -1]).squeeze(-1)
