"""What the layers hand to one another: series, batches, problems, outputs, regularizers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ndeflow.numerics.solution import Solution


class Series(NamedTuple):
    """What a user gives: N series, of one length or ragged.

    ts: (N, T), or a list of N tensors (T_n,); increasing within a series.
    ys: (N, T, C), or a list of (T_n, C); NaN counts as missing.
    mask: like `ys`, True where observed; None: wherever `ys` is not NaN.
    target: None; N class labels (strings or integers); or (N,) / (N, K) floats to regress.
    inputs: None or (N, S): conditions known from the start, kept apart from the channels.
    """

    ts: Tensor | Sequence[Tensor]
    ys: Tensor | Sequence[Tensor]
    mask: Tensor | Sequence[Tensor] | None = None
    target: Tensor | Sequence[Any] | None = None
    inputs: Tensor | None = None


class Batch(NamedTuple):
    """B padded series as a model sees them.

    ts: (B, T) times, each row padded with its last time.
    ys: (B, T, C) values in the model's units; 0 where `mask` is False.
    mask: (B, T, C) bool, observed; False on padding.
    seen: (B, T, C) bool, a subset of `mask`: what a model may read. `mask & ~seen` is what is scored.
    target: (B,) int64 classes, (B, K) floats in the model's units, or None.
    inputs: (B, S) or None.
    index: (B,) int64, the row's place in the whole data set: the key of its noise.
    """

    ts: Tensor
    ys: Tensor
    mask: Tensor
    seen: Tensor
    target: Tensor | None
    inputs: Tensor | None
    index: Tensor

    def of(self, rows: Tensor) -> Batch:
        """Some of its rows, by their places (R,)."""
        return self._replace(**{name: leaf[rows] for name, leaf in self._asdict().items() if leaf is not None})

    @property
    def scored(self) -> Tensor:
        """(B, T, C) bool: observed values that the model was not allowed to read."""
        return self.mask & ~self.seen


@dataclass(frozen=True)
class DataSpec:
    """What must be known of the training data to use a model on other data; plain values only.

    channels: names in order. mean, std: per channel, of the training split's observed values
    (0 and 1 where the data were not standardised): data = z * std + mean.
    time_scale: length of one model time unit in the data's own (seconds for date-times).
    time_kind: "number" or "date". classes: labels in order of their integer code, empty otherwise.
    statics: names of `inputs`. class_weights: one a class, mean 1 over the training rows; empty otherwise.
    time_origin: what was subtracted from all times, in the data's unit; None: from each series its first time.
    statics_mean, statics_std: of the training rows' `inputs`; empty where these were not standardised.
    target_mean, target_std: of the numbers to regress, likewise: a model gives (target - mean) / std.
    """

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    time_scale: float = 1.0
    time_kind: str = "number"
    classes: tuple[str, ...] = ()
    statics: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    time_origin: float | None = 0.0
    statics_mean: tuple[float, ...] = ()
    statics_std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, fit for a checkpoint loaded with weights_only=True."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_data_units(self, z: Tensor) -> Tensor:
        """z * std + mean over the last dimension. z: (..., C)."""
        return z * z.new_tensor(self.std) + z.new_tensor(self.mean)

    def to_model_units(self, y: Tensor) -> Tensor:
        """(y - mean) / std over the last dimension. y: (..., C)."""
        return (y - y.new_tensor(self.mean)) / y.new_tensor(self.std)

    def target_to_data_units(self, z: Tensor) -> Tensor:
        """What a model gives of targets, z (..., K), in the data's own units."""
        return z * z.new_tensor(self.target_std) + z.new_tensor(self.target_mean) if self.target_std else z

    def target_to_model_units(self, y: Tensor) -> Tensor:
        """Targets y (..., K) as a model is to give them."""
        return (y - y.new_tensor(self.target_mean)) / y.new_tensor(self.target_std) if self.target_std else y


@dataclass(frozen=True)
class Problem:
    """An initial value problem, checked: the arguments of `solve` less solver and adjoint.

    field: the right-hand side. y0: (B, *state). ts: (T,) or (B, T), monotone per row.
    probes: further times to be read by dense output, in any order, (P,) or (B, P); they follow the T save
    times in the solution and never change the steps of an adaptive solve.
    context: a tensor, a control path, or a NamedTuple of them, every leaf with leading dimension B.
    integrands: pairs (module, own context), module(at, own) -> (B,) with at an `Evaluation` of the field: integrated
    beside the state, outside the error norm; one that is not finite fails the solve as a state does.
    noise: a `Brownian`, for an SDE. keep_mesh: keep the states at accepted steps in `stats.states`.
    """

    field: Any
    y0: Tensor
    ts: Tensor
    context: Any = None
    integrands: tuple[tuple[nn.Module, Any], ...] = ()
    noise: Any = None
    probes: Tensor | None = None
    keep_mesh: bool = False

    @cached_property
    def clock(self) -> tuple[float, ...] | None:
        """The save times, then the probes, as plain numbers, read from the device once.

        None where rows have their own times, or gradients of times are wanted.
        """
        known = _known(self.ts)
        if known is None or self.probes is None:
            return known
        more = _known(self.probes)
        return None if more is None else known + more

    def with_probes(self, times: Tensor) -> Problem:
        """The same problem, also read at `times`: (P,) or (B, P) as `ts` is."""
        kept = times if self.probes is None else torch.cat([self.probes, times], dim=-1)
        return replace(self, probes=kept)

    def with_integrand(self, integrand: nn.Module, own: Any = None) -> Problem:
        """The same problem with one more integral beside the state."""
        return replace(self, integrands=(*self.integrands, (integrand, own)))


def _known(times: Tensor) -> tuple[float, ...] | None:
    """Times that all rows share as plain numbers; None where gradients of them are wanted, or rows have their own."""
    return None if times.dim() > 1 or times.requires_grad else tuple(times.tolist())


@dataclass
class Output:
    """A model's answer: prediction (B, ...), or (S, B, ...) with S draws, and the solves behind it.

    kl: (B,) divergence of a posterior from its prior, where there is one.
    """

    prediction: Tensor
    solutions: tuple[Solution, ...] = ()
    kl: Tensor | None = None
    draws: bool = field(default=False, kw_only=True)

    def of(self, rows: Tensor) -> Self:
        """The answer for some rows of the batch, by their places (R,), its solves apart."""
        prediction = self.prediction[:, rows] if self.draws else self.prediction[rows]
        return replace(self, prediction=prediction, kl=None if self.kl is None else self.kl[rows])


@dataclass
class GaussianOutput(Output):
    """S draws of values that are Gaussian given a latent path: prediction = mean + std * noise.

    mean: (S, B, ...), of each draw's path, the first dimension 1 where `draws` is False. std: (C,), positive, of the
    observations' noise.
    """

    mean: Tensor = field(kw_only=True)
    std: Tensor = field(kw_only=True)

    def of(self, rows: Tensor) -> Self:
        return replace(super().of(rows), mean=self.mean[:, rows])


@dataclass
class Gaussian(Output):
    """A normal distribution of every value: prediction (B, T, C) its mean, std (B, T, C) its standard deviation."""

    std: Tensor = field(kw_only=True)

    def of(self, rows: Tensor) -> Self:
        return replace(super().of(rows), std=self.std[rows])


class Solved(NamedTuple):
    """One regularized solve, as a regularizer's penalty sees it.

    solution: the full solution, other regularizers' probes and integrals included.
    probes: places of this regularizer's own probes along the time dimension of `solution.ys`.
    integrals: places of its own integrals in the last dimension of `solution.integrals`.
    """

    solution: Solution
    probes: range
    integrals: range


class Decay(ABC):
    """A weight that changes over training; `at(progress)` with progress from 0 (start) to 1 (end)."""

    @abstractmethod
    def at(self, progress: float) -> float: ...


@dataclass(frozen=True)
class ExponentialDecay(Decay):
    """start * (end / start) ** progress, both positive."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (0 < self.start < math.inf and 0 < self.end < math.inf):
            raise ValueError(
                f"expected positive start and end of an exponential decay, got {self.start}, {self.end}; "
                "use LinearDecay to reach zero"
            )

    def at(self, progress: float) -> float:
        return self.start * math.exp(progress * math.log(self.end / self.start))


@dataclass(frozen=True)
class LinearDecay(Decay):
    """start + (end - start) * progress, neither negative."""

    start: float
    end: float

    def __post_init__(self) -> None:
        check_weight(self.start)
        check_weight(self.end)

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class LinearWarmup(Decay):
    """end * min(progress / share, 1): from 0 to `end` in the first `share` of the training, in (0, 1]."""

    share: float
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share of the training in (0, 1], got {self.share}; use the number {self.end}")
        check_weight(self.end)

    def at(self, progress: float) -> float:
        return self.end * min(progress / self.share, 1.0)


def check_weight(weight: float) -> None:
    """Raise ValueError for a weight that is negative or not finite."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"expected a finite weight of at least 0, got {weight}; a negative one rewards what it is for")


class Regularizer(nn.Module, ABC):
    """A penalty added to the loss of a training step, weighted by a number or a `Decay`.

    `prepare` may change a solve before it runs (jitter its end, add probes or an integrand); `penalty` is
    computed afterwards. Only training steps see regularizers: evaluation and sampling never do. Raises ValueError for
    a weight that is negative or not finite.
    """

    def __init__(self, weight: float | Decay = 1.0) -> None:
        super().__init__()
        if not isinstance(weight, Decay):
            check_weight(weight)
        self.weight = weight

    def weight_at(self, progress: float) -> float:
        """The weight at a training progress in [0, 1]."""
        return self.weight.at(progress) if isinstance(self.weight, Decay) else float(self.weight)

    def check(self, model: Any) -> None:  # noqa: B027
        """Refuse at construction what can never work with `model`; raises ValueError with the cure."""

    def prepare(self, problem: Problem) -> Problem:
        """The problem to be solved instead; the same by default."""
        return problem

    @abstractmethod
    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        """The unweighted penalty, a scalar, from each regularized solve of this forward pass."""
