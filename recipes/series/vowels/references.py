"""What a GRU and ROCKET reach on the same series with the same observations dropped."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.nets.recurrent import HistoryEncoder

KERNELS = 1000


def references(data, seed: int) -> dict[str, float]:
    """Test accuracies; both are fitted to the training part, the GRU stopped on the validation part."""
    return {"reference/gru": gru(data.train, data.val, data.test, seed), "reference/rocket": rocket(data, seed)}


def gru(train: Batch, val: Batch, test: Batch, seed: int, hidden: int = 32, epochs: int = 60) -> float:
    """A GRU over (values, seen flags, gaps), Adam 3e-3, batches of 32, the epoch with the best validation accuracy."""
    torch.manual_seed(seed)
    classes = int(train.target.max()) + 1
    encoder, head = HistoryEncoder(train.ys.shape[-1], hidden), nn.Linear(hidden, classes)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)

    def logits(batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
        return head(encoder(batch.ts[rows], batch.ys[rows], batch.seen[rows]))

    def accuracy(batch: Batch) -> float:
        with torch.no_grad():
            return float((logits(batch).argmax(-1) == batch.target).double().mean())

    best = (-1.0, 0.0)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.index)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits(train, rows), train.target[rows]).backward()
            optimizer.step()
        best = max(best, (accuracy(val), accuracy(test)), key=lambda pair: pair[0])
    return best[1]


def rocket(data, seed: int) -> float:
    """Random dilated kernels, share of positive values and maximum of each, ridge with inner cross-validation.

    Dempster, Petitjean, Webb 2020. Gaps are filled by linear interpolation at equal distances over a series' span.
    """
    generator = np.random.default_rng(seed)
    points = max(part.ts.shape[1] for part in (data.train, data.val, data.test))
    grids = {name: resample(getattr(data, name), points) for name in ("train", "test")}
    features = {name: [] for name in grids}
    for _ in range(KERNELS):
        kernel = random_kernel(generator, *grids["train"].shape[1:])
        for name, grid in grids.items():
            features[name].append(apply_kernel(grid, *kernel))
    train, test = (torch.cat(features[name], dim=1).numpy() for name in ("train", "test"))
    mean, std = train.mean(0), train.std(0) + 1e-8
    ridge = RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)).fit((train - mean) / std, data.train.target.numpy())
    return float(ridge.score((test - mean) / std, data.test.target.numpy()))


def random_kernel(generator: np.random.Generator, channels: int, points: int) -> tuple[Tensor, float, int, bool]:
    """Weights (1, channels, length), bias, dilation and whether to pad."""
    length = int(generator.choice([7, 9, 11]))
    used = generator.choice(channels, size=int(2 ** generator.uniform(0, np.log2(channels + 1))), replace=False)
    weights = np.zeros((1, channels, length), dtype=np.float32)
    draw = generator.normal(size=(len(used), length))
    weights[0, used] = draw - draw.mean(axis=1, keepdims=True)
    dilation = int(2 ** generator.uniform(0, np.log2((points - 1) / (length - 1))))
    return torch.from_numpy(weights), float(generator.uniform(-1, 1)), dilation, bool(generator.integers(2))


def apply_kernel(grid: Tensor, weights: Tensor, bias: float, dilation: int, pad: bool) -> Tensor:
    """(N, 2): share of positive responses and the largest one."""
    padding = (weights.shape[-1] - 1) * dilation // 2 if pad else 0
    response = nn.functional.conv1d(grid, weights, dilation=dilation, padding=padding).squeeze(1) + bias
    return torch.stack([(response > 0).float().mean(1), response.amax(1)], dim=1)


def resample(batch: Batch, points: int) -> Tensor:
    """(N, C, points): each channel's seen values, linearly interpolated at equal distances over the series' span."""
    rows = []
    for ts, ys, seen in zip(batch.ts.numpy(), batch.ys.numpy(), batch.seen.numpy(), strict=True):
        grid = np.linspace(ts[0], ts[-1], points)
        rows.append(
            [
                np.interp(grid, ts[mark], value[mark]) if mark.any() else np.zeros(points)
                for value, mark in zip(ys.T, seen.T, strict=True)
            ]
        )
    return torch.tensor(np.array(rows), dtype=torch.float32)
