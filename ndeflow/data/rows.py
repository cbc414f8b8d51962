"""A data set as ragged rows, checked; its way into padded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ndeflow.contracts import Batch, DataSpec, Series
from ndeflow.data.targets import codes, joined, rows_of_target


class Rows(NamedTuple):
    """N series of own lengths T_n, in float64 and the data's units.

    ts: N tensors (T_n,). ys: N tensors (T_n, C). mask: N tensors (T_n, C) bool, False where `ys` is NaN.
    target: None, N labels, or (N, K) floats. inputs: None or (N, S).
    """

    ts: list[Tensor]
    ys: list[Tensor]
    mask: list[Tensor]
    target: list[str] | Tensor | None
    inputs: Tensor | None

    def take(self, index: Tensor) -> Rows:
        """The rows of these numbers (M,)."""
        chosen = index.tolist()
        target = [self.target[i] for i in chosen] if isinstance(self.target, list) else self.target
        return Rows(
            [self.ts[i] for i in chosen],
            [self.ys[i] for i in chosen],
            [self.mask[i] for i in chosen],
            target[index] if isinstance(target, Tensor) else target,
            None if self.inputs is None else self.inputs[index],
        )

    @property
    def labels(self) -> list[str] | None:
        """The class labels, where the targets are classes."""
        return self.target if isinstance(self.target, list) else None


def rows_of(series: Series) -> Rows:
    """Check a user's series. Raises ValueError naming the first row that is not as `Series` says."""
    ts = [torch.as_tensor(t).detach().cpu().double() for t in series.ts]
    ys = [torch.as_tensor(y).detach().cpu().double() for y in series.ys]
    given = [None] * len(ys) if series.mask is None else list(series.mask)
    if not ts or not len(ts) == len(ys) == len(given):
        raise ValueError(f"expected as many rows in ts, ys and mask, got {len(ts)}, {len(ys)} and {len(given)}")
    for row, (t, y) in enumerate(zip(ts, ys, strict=True)):
        check_row(row, t, y, channels=ys[0].shape[-1])
    mask = [observed(row, y, m) for row, (y, m) in enumerate(zip(ys, given, strict=True))]
    inputs = None if series.inputs is None else torch.as_tensor(series.inputs).detach().cpu().double()
    if inputs is not None and (inputs.dim() != 2 or len(inputs) != len(ts)):
        raise ValueError(f"expected inputs of shape ({len(ts)}, S), got {tuple(inputs.shape)}")
    return Rows(ts, ys, mask, rows_of_target(series.target, len(ts)), inputs)


def check_row(row: int, t: Tensor, y: Tensor, *, channels: int) -> None:
    if t.dim() != 1 or y.dim() != 2 or len(t) != len(y) or y.shape[1] != channels or not len(t):
        raise ValueError(
            f"row {row}: expected times (T,) and values (T, {channels}), got {tuple(t.shape)} and {tuple(y.shape)}"
        )
    if not t.isfinite().all() or (t.diff() < 0).any():
        raise ValueError(f"row {row}: expected finite, increasing times; sort the row by time")
    if y.isinf().any():
        raise ValueError(f"row {row}: infinite value; write NaN where a value is missing")


def observed(row: int, y: Tensor, mask: Any) -> Tensor:
    if mask is None:
        return ~y.isnan()
    given = torch.as_tensor(mask).cpu().bool()
    if given.shape != y.shape:
        raise ValueError(f"row {row}: expected a mask of shape {tuple(y.shape)}, got {tuple(given.shape)}")
    return given & ~y.isnan()


def join(parts: Mapping[str, Rows]) -> tuple[Rows, dict[str, Tensor]]:
    """The parts one after the other, and each part's row numbers. Raises ValueError where they do not fit together."""
    every = list(parts.values())
    if len({rows.ys[0].shape[1] for rows in every}) > 1 or len({rows.inputs is None for rows in every}) > 1:
        raise ValueError(f"expected the same channels and inputs in {list(parts)}")
    inputs = None if every[0].inputs is None else torch.cat([rows.inputs for rows in every if rows.inputs is not None])
    flat = Rows(
        [t for rows in every for t in rows.ts],
        [y for rows in every for y in rows.ys],
        [m for rows in every for m in rows.mask],
        joined([rows.target for rows in every]),
        inputs,
    )
    numbers = torch.arange(len(flat.ts)).split([len(rows.ts) for rows in every])
    return flat, dict(zip(parts, numbers, strict=True))


class Padded(NamedTuple):
    """ts (N, T), ys (N, T, C), mask (N, T, C): rows as long as the longest."""

    ts: Tensor
    ys: Tensor
    mask: Tensor


def padded(ts: Sequence[Tensor], ys: Sequence[Tensor], mask: Sequence[Tensor]) -> Padded:
    """Fill short rows with their last time, value 0 and mask False."""
    lengths = torch.tensor([len(t) for t in ts])
    last = torch.stack([t[-1] for t in ts])
    times = pad_sequence(list(ts), batch_first=True)
    beyond = torch.arange(times.shape[1]) >= lengths[:, None]
    flags = pad_sequence(list(mask), batch_first=True)
    values = pad_sequence(list(ys), batch_first=True)
    return Padded(torch.where(beyond, last[:, None], times), values.masked_fill(~flags, 0.0), flags)


def to_batch(rows: Rows, spec: DataSpec, index: Tensor) -> Batch:
    """The rows in the model's units, all of it seen; `index` (N,) are their numbers in the data set.

    Times stay float64; values, inputs and numeric targets become torch's default dtype.
    """
    ts, ys, mask = padded(rows.ts, rows.ys, rows.mask)
    z = spec.to_model_units(ys).masked_fill(~mask, 0.0)
    inputs = rows.inputs
    if inputs is not None and spec.statics_mean:
        inputs = (inputs - inputs.new_tensor(spec.statics_mean)) / inputs.new_tensor(spec.statics_std)
    real = torch.get_default_dtype()
    target = codes(rows.target, spec.classes) if isinstance(rows.target, list) else rows.target
    return Batch(
        ts=ts / spec.time_scale,
        ys=z.to(real),
        mask=mask,
        seen=mask.clone(),
        target=target.to(real) if target is not None and target.is_floating_point() else target,
        inputs=None if inputs is None else inputs.to(real),
        index=index,
    )
