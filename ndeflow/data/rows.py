"""A data set as ragged rows, checked; its way into padded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    ts, ys = listed(series.ts), listed(series.ys)
    given = None if series.mask is None else [torch.as_tensor(mask).cpu().bool() for mask in series.mask]
    count = len(ys) if given is None else len(given)
    if not ts or not len(ts) == len(ys) == count:
        raise ValueError(f"expected as many rows in ts, ys and mask, got {len(ts)}, {len(ys)} and {count}")
    check_shapes(ts, ys, given)
    lengths = [t.numel() for t in ts]
    values = torch.cat(ys)
    check_numbers(torch.cat(ts), values, torch.arange(len(ts)).repeat_interleave(torch.tensor(lengths)))
    mask = ~values.isnan() if given is None else torch.cat(given) & ~values.isnan()
    inputs = None if series.inputs is None else torch.as_tensor(series.inputs).detach().cpu().double()
    if inputs is not None and (inputs.dim() != 2 or len(inputs) != len(ts)):
        raise ValueError(f"expected inputs of shape ({len(ts)}, S), got {tuple(inputs.shape)}")
    if inputs is not None and not inputs.isfinite().all():
        row, place = (~inputs.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"row {row}: expected finite inputs, got {inputs[row, place]}; leave out the row or the input")
    return Rows(ts, ys, list(mask.split(lengths)), rows_of_target(series.target, len(ts)), inputs)


def listed(rows: Any) -> list[Tensor]:
    """Each row in float64; those of one stack are converted at once."""
    if isinstance(rows, Tensor):
        return list(rows.detach().cpu().double())
    return [torch.as_tensor(row).detach().cpu().double() for row in rows]


def check_shapes(ts: Sequence[Tensor], ys: Sequence[Tensor], mask: Sequence[Tensor] | None) -> None:
    channels = ys[0].shape[-1]
    for row, (t, y) in enumerate(zip(ts, ys, strict=True)):
        if t.dim() != 1 or y.shape != (*t.shape, channels) or not t.numel():
            raise ValueError(
                f"row {row}: expected times (T,) and values (T, {channels}), got {tuple(t.shape)} and {tuple(y.shape)}"
            )
    for row, (y, m) in enumerate(zip(ys, mask or ys, strict=True)):
        if m.shape != y.shape:
            raise ValueError(f"row {row}: expected a mask of shape {tuple(y.shape)}, got {tuple(m.shape)}")


def check_numbers(times: Tensor, values: Tensor, row: Tensor) -> None:
    """times: (M,), values: (M, C), of all rows one after the other; row: (M,), the number of each one's row."""
    earlier = (times.diff() < 0) & (row.diff() == 0)
    wrong = ~times.isfinite() | torch.cat([earlier.new_zeros(1), earlier])
    if wrong.any():
        raise ValueError(f"row {int(row[wrong][0])}: expected finite, increasing times; sort the row by time")
    infinite = values.isinf().any(dim=1)
    if infinite.any():
        raise ValueError(f"row {int(row[infinite][0])}: infinite value; write NaN where a value is missing")


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
    lengths = torch.tensor([t.numel() for t in ts])
    within = torch.arange(int(lengths.max())) < lengths[:, None]
    times, values, flags = (filled(torch.cat(list(rows)), within) for rows in (ts, ys, mask))
    last = times.gather(1, lengths[:, None] - 1)
    return Padded(torch.where(within, times, last), values.masked_fill(~flags, 0.0), flags)


def filled(flat: Tensor, within: Tensor) -> Tensor:
    """Rows (N, T, ...) with the values `flat` (M, ...), in order, at the M places in `within` (N, T), and else 0."""
    rows = flat.new_zeros(*within.shape, *flat.shape[1:])
    rows[within] = flat
    return rows


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
    if isinstance(rows.target, Tensor):
        target = spec.target_to_model_units(rows.target.double()).to(real)
    return Batch(
        ts=ts / spec.time_scale,
        ys=z.to(real),
        mask=mask,
        seen=mask.clone(),
        target=target,
        inputs=None if inputs is None else inputs.to(real),
        index=index,
    )
