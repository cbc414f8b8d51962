"""What is computed from the training rows, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ndeflow.data.rows import Rows


def channel_statistics(rows: Rows, names: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of each channel's observed values.

    Raises ValueError for a channel without a value. A constant channel has standard deviation 0.
    """
    values, mask = torch.cat(rows.ys), torch.cat(rows.mask)
    mean, std = [], []
    for name, column, seen in zip(names, values.T, mask.T, strict=True):
        if not seen.any():
            raise ValueError(f"channel '{name}' has no value in the training ids; leave it out of data.channels")
        observed = column[seen]
        mean.append(float(observed.mean()))
        constant = bool((observed == observed[0]).all())
        std.append(0.0 if constant else float(observed.std(correction=0)))
    return tuple(mean), tuple(std)


def check_varying(std: Sequence[float], names: Sequence[str]) -> None:
    """Refuse a constant channel: it cannot be standardised and says nothing."""
    for name, spread in zip(names, std, strict=True):
        if spread == 0:
            raise ValueError(f"channel '{name}' is constant in the training ids; leave it out of data.channels")


def input_statistics(inputs: Tensor | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each input (N, S), 1 where it is constant; empty without inputs."""
    if inputs is None:
        return (), ()
    std = inputs.std(dim=0, correction=0)
    return tuple(inputs.mean(dim=0).tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist())


def median_gap(ts: Sequence[Tensor]) -> float:
    """The (lower) median time from one observation of a row to its next; 1 where no row has two times."""
    gaps = torch.cat([t.diff() for t in ts])
    gaps = gaps[gaps > 0]
    return float(gaps.median()) if len(gaps) else 1.0
