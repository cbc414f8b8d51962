"""Right-hand sides: what a field is, and how it sees its context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

from torch import Tensor, nn

from ndeflow.numerics.paths import ControlPath

NOISE_TYPES = ("scalar", "additive", "diagonal", "general")
SDE_TYPES = ("ito", "stratonovich")


class SDE(nn.Module, ABC):
    """dy = drift(t, y) dt + diffusion(t, y) dW, with y (B, d) and W of `noise_size` channels.

    noise_type: "diagonal" (diffusion (B, d), each component its own noise, with Milstein's method by a g_i of t and y_i
    alone), "scalar" (one channel), "additive" (diffusion independent of y) or "general"; the last three have diffusion
    (B, d, noise_size).
    sde_type: "ito" or "stratonovich". Raises ValueError for other names or a noise size that does not fit.
    """

    def __init__(self, *, noise_type: str, sde_type: str, noise_size: int) -> None:
        super().__init__()
        if noise_type not in NOISE_TYPES:
            raise ValueError(f"expected noise_type among {', '.join(NOISE_TYPES)}, got {noise_type!r}")
        if sde_type not in SDE_TYPES:
            raise ValueError(f"expected sde_type ito or stratonovich, got {sde_type!r}")
        if noise_size < 1 or (noise_type == "scalar" and noise_size != 1):
            raise ValueError(f"expected a positive noise_size, 1 for scalar noise, got {noise_size}")
        self.noise_type, self.sde_type, self.noise_size = noise_type, sde_type, noise_size

    @abstractmethod
    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        """(B, d) at y (B, d), or a pair of it and dq (B, K); t broadcasts against y."""

    @abstractmethod
    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        """(B, d) for diagonal noise, else (B, d, noise_size)."""

    def forward(self, t: Tensor, y: Tensor, *context: Any) -> tuple[Any, Tensor]:
        """Drift and diffusion."""
        return self.drift(t, y, *context), self.diffusion(t, y, *context)


@final
class Controlled(nn.Module):
    """A controlled differential equation dy = f(t, y) dX as an ODE: dy/dt = f(t, y) dX/dt.

    field: module (t, y) -> (B, *state, C). The control path X, with C channels, is the context, or its leaf named
    `path`. Kidger, Morrill, Foster, Lyons 2020, "Neural controlled differential equations", eq. 4.
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, context: Any = None) -> Tensor:
        slope = required_path(context).derivative(t)
        shape = (y.shape[0], *[1] * (y.dim() - 2), slope.shape[-1], 1)
        return (self.field(t, y) @ slope.reshape(shape)).squeeze(-1)

    def _get_name(self) -> str:
        return f"Controlled({self.field._get_name()})"


def ByValue(field: nn.Module) -> nn.Module:
    """A field that sees the value of the control path: dy/dt = field(t, y, X(t)), X(t) (B, C).

    The control path is the context, or its leaf named `path`. Of an `SDE` the drift alone sees it, as
    drift(t, y, X(t)), and the diffusion is called as diffusion(t, y); the result is an `SDE` too.
    """
    return SDEByValue(field) if isinstance(field, SDE) else ODEByValue(field)


@final
class ODEByValue(nn.Module):
    """dy/dt = field(t, y, X(t)); made by `ByValue`."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, context: Any = None) -> Any:
        return self.field(t, y, required_path(context).value(t))

    def _get_name(self) -> str:
        return f"ByValue({self.field._get_name()})"


@final
class SDEByValue(SDE):
    """dy = drift(t, y, X(t)) dt + diffusion(t, y) dW; made by `ByValue`."""

    def __init__(self, sde: SDE) -> None:
        super().__init__(noise_type=sde.noise_type, sde_type=sde.sde_type, noise_size=sde.noise_size)
        self.sde = sde

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        return self.sde.drift(t, y, required_path(*context).value(t))

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.sde.diffusion(t, y)


def path_of(context: Any) -> ControlPath | None:
    """The control path of a context: the context itself, its leaf named `path`, or None."""
    if context is None or isinstance(context, ControlPath):
        return context
    return dict(_parts(context)).get("path")


def required_path(context: Any = None) -> ControlPath:
    """The control path of a context; raises ValueError where there is none."""
    path = path_of(context)
    if path is None:
        raise ValueError(
            f"expected a control path as context, or in its leaf named path, got {type(context).__name__}; "
            "give solve(..., context=path)"
        )
    return path


def continuous(field: Any, context: Any) -> bool:
    """Whether a field has no jump at the knots of the context's control path, but at intervals of length zero."""
    path = path_of(context)
    if path is None:
        return True
    return (isinstance(field, Controlled) and path.smoothness >= 1) or (
        isinstance(field, ODEByValue) and path.smoothness >= 0
    )


def with_piece(context: Any, k: int) -> Any:
    """The context with its control path cut down to segment k; unchanged where there is no path."""
    path = path_of(context)
    if path is None:
        return context
    piece = path.piece(k)
    return piece if isinstance(context, ControlPath) else context._replace(path=piece)


def leaves(context: Any) -> list[Tensor]:
    """All tensors of a context in order; a control path's knots and coefficients included.

    Raises ValueError for what is no context: not a tensor, a control path, None, or a NamedTuple of these.
    """
    if isinstance(context, Tensor):
        return [context]
    if isinstance(context, ControlPath):
        return context.leaves()
    return [leaf for _, part in _parts(context) for leaf in leaves(part)]


def conditions(context: Any, integrands: Sequence[tuple[Any, Any]]) -> list[Tensor]:
    """The leaves of the context and of the integrands' own contexts, in order."""
    if context is None and not integrands:
        return []
    return [*leaves(context), *(leaf for _, own in integrands for leaf in leaves(own))]


def replace_leaves(context: Any, new: Sequence[Tensor]) -> Any:
    """The same context made of other tensors, as many and in the order of `leaves`."""
    return rebuilt(context, iter(new))


def rebuilt(context: Any, new: Iterator[Tensor]) -> Any:
    """The same context made of other tensors, taken from `new` in the order of `leaves`."""
    if context is None:
        return None
    if isinstance(context, Tensor):
        return next(new)
    if isinstance(context, ControlPath):
        return context.rebuild(new)
    return context._replace(**{name: rebuilt(part, new) for name, part in _parts(context)})


def _parts(context: Any) -> list[tuple[str, Any]]:
    """Names and parts of a NamedTuple; of a tensor and None there are none."""
    if context is None or isinstance(context, Tensor):
        return []
    names = getattr(context, "_fields", None)
    if not isinstance(context, tuple) or names is None:
        raise ValueError(
            "expected a context made of tensors, control paths and NamedTuples of them, got "
            f"{type(context).__name__}; define a NamedTuple with a field for each tensor"
        )
    return list(zip(names, context, strict=True))
