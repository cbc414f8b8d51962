"""Points of the plane drawn from known densities."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Generator, Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule


class Points(DataModule):
    """Independent points of the plane, each a series of one vector: write `draw` and `log_density`.

    train_points, val_points, test_points: how many are drawn, with `split_seed`. `reference/nll` is the mean negative
    log-density of the test points in nats: no model can be better but by chance. Raises ValueError for fewer than one.
    """

    channel_names = ("x", "y")

    def __init__(
        self,
        *,
        train_points: int = 100_000,
        val_points: int = 10_000,
        test_points: int = 20_000,
        batch_size: int = 512,
        eval_batch_size: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, split_seed=split_seed)
        self.counts = {"train": train_points, "val": val_points, "test": test_points}
        if min(self.counts.values()) < 1:
            raise ValueError(f"expected at least one point a split, got {self.counts}")

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """(count, 2) points, float32."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """(N,) natural logarithms of the density at x (N, 2); -inf where it is 0."""

    @final
    def series(self) -> Mapping[str, Series]:
        generator = torch.Generator().manual_seed(self.split_seed)
        return {
            split: Series(torch.zeros(count, 1), self.draw(count, generator)[:, None])
            for split, count in self.counts.items()
        }

    @final
    def references(self) -> dict[str, float]:
        return {"reference/nll": -float(self.log_density(self.test.ys[:, 0].double()).mean())}


@final
class Checkerboard(Points):
    """Uniform on the eight dark squares, of side 1.5, of a board on [-3, 3]^2.

    Deveney et al. 2025, "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation".
    """

    SIDE = 1.5

    def draw(self, count: int, generator: Generator) -> Tensor:
        square = torch.randint(8, (count,), generator=generator)
        column, half = square % 4, square // 4
        corner = torch.stack([column, 2 * half + column % 2], dim=-1) - 2
        return self.SIDE * (corner + torch.rand(count, 2, generator=generator))

    def log_density(self, x: Tensor) -> Tensor:
        corner = (x / self.SIDE).floor()
        dark = (corner.sum(dim=-1) % 2 == 0) & (corner >= -2).all(dim=-1) & (corner < 2).all(dim=-1)
        return torch.where(dark, -math.log(8 * self.SIDE**2), -math.inf).to(x)


@final
class Rings(Points):
    """Two rings of equal weight, of radii 1.3 and 2.8: any direction, a normal radius of standard deviation 0.2.

    Deveney et al. 2025.
    """

    RADII, STD = (1.3, 2.8), 0.2

    def draw(self, count: int, generator: Generator) -> Tensor:
        radii = torch.tensor(self.RADII)[torch.randint(2, (count,), generator=generator)]
        radius = radii + self.STD * torch.randn(count, generator=generator)
        angle = 2 * math.pi * torch.rand(count, generator=generator)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def log_density(self, x: Tensor) -> Tensor:
        r = x.norm(dim=-1, keepdim=True)
        both = torch.cat(
            [r - x.new_tensor(self.RADII), -r - x.new_tensor(self.RADII)], dim=-1
        )  # r or, 180 degrees on, -r
        radial = torch.logsumexp(-0.5 * (both / self.STD).square(), dim=-1) - math.log(len(self.RADII))
        return radial - math.log(self.STD * math.sqrt(2 * math.pi)) - (2 * math.pi * r[:, 0]).log()


@final
class NineGaussians(Points):
    """Nine normal distributions of equal weight and standard deviation 0.65 sqrt(0.2), in a diamond around 0.

    Deveney et al. 2025. Centres: 0.65 times (0, 0), (+-2, +-2), (+-4, 0), (0, +-4).
    """

    CENTRES = ((0, 0), (2, 2), (2, -2), (-2, 2), (-2, -2), (4, 0), (-4, 0), (0, 4), (0, -4))
    UNIT, STD = 0.65, 0.65 * math.sqrt(0.2)

    def draw(self, count: int, generator: Generator) -> Tensor:
        centres = self.UNIT * torch.tensor(self.CENTRES, dtype=torch.float32)
        chosen = centres[torch.randint(len(centres), (count,), generator=generator)]
        return chosen + self.STD * torch.randn(count, 2, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - self.UNIT * x.new_tensor(self.CENTRES)) / self.STD
        mixture = torch.logsumexp(-0.5 * distance.square().sum(dim=-1), dim=-1) - math.log(len(self.CENTRES))
        return mixture - math.log(2 * math.pi * self.STD**2)
