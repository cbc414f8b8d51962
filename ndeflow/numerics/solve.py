"""The one door to a solution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import isfinite
from typing import Any

from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE, leaves, path_of
from ndeflow.numerics.solution import Adjoint, Solution, Solver
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.numerics.transforms import refuse_vmap


def solve(
    field: Any,
    y0: Tensor,
    ts: Tensor,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    context: Any = None,
    integrands: Sequence[tuple[Integrand, Any]] = (),
    noise: Brownian | None = None,
) -> Solution:
    """Solve dy/dt = field(t, y) from y0 at ts[0], read at all ts.

    field: called as (t, y), or (t, y, context) where there is a context; gives dy (B, *state), or (dy, dq) with
    integrals' rates dq (B, K). An `SDE` for a stochastic equation. y0: (B, *state). ts: (T,) or (B, T), monotone
    in each row, repeats allowed; decreasing for an ODE backward in time. solver: None: `RungeKutta()`, for an
    SDE `Stochastic(...)`. adjoint: None: `Direct()`. context: a tensor, a control path or a NamedTuple of them,
    leaves (B, ...). integrands: pairs (`Integrand`, own context) integrated beside the state. noise: an SDE's; None:
    its seed is drawn from torch's default generator.

    Returns a `Solution` with ys (B, T, *state). Raises ValueError for arguments that do not fit together,
    SolveError for a solve that fails.
    """
    problem = pose(field, y0, ts, context=context, integrands=integrands, noise=noise)
    return (adjoint or Direct())(solver or default_solver(field), problem)


def default_solver(field: Any) -> Solver:
    """`RungeKutta()`, or for an SDE `Stochastic` with a method of its calculus: euler (Ito), heun (Stratonovich)."""
    if not isinstance(field, SDE):
        return RungeKutta()
    return Stochastic("euler" if field.sde_type == "ito" else "heun")


def pose(
    field: Any,
    y0: Tensor,
    ts: Tensor,
    *,
    context: Any = None,
    integrands: Sequence[tuple[Integrand, Any]] = (),
    noise: Brownian | None = None,
) -> Problem:
    """The checked problem of these arguments, as `solve` takes them; raises ValueError with the cure."""
    refuse_vmap()
    if not callable(field):
        raise ValueError(
            f"expected a field that can be called, got {type(field).__name__}; give a module or a function"
        )
    _check_state(y0)
    _check_times(ts, y0)
    if context is not None:
        _check_leaves("context", context, y0)
        if (path := path_of(context)) is not None:
            path.check_times(ts)
    for pair in integrands:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Integrand)):
            raise ValueError(
                "expected integrands as pairs (Integrand, own context), got something else; derive from Integrand, and "
                "give (it, None)"
            )
        _check_leaves("an integrand's own context", pair[1], y0)
    if noise is not None:
        if not isinstance(field, SDE):
            raise ValueError("expected noise for an SDE only, got it with an ODE; leave it out, or derive from SDE")
        noise.check(len(y0))
    elif isinstance(field, SDE):
        noise = Brownian.drawn()
    return Problem(field, y0, ts, context, tuple(integrands), noise)


def _check_state(y0: Tensor) -> None:
    _check_tensor("y0", y0)
    if not (y0.is_floating_point() or y0.is_complex()):
        raise ValueError(f"expected a floating-point y0, got {y0.dtype}; call y0.float()")
    if y0.dim() == 0 or y0.numel() == 0:
        raise ValueError(
            f"expected y0 of shape (B, *state) with B >= 1, got {tuple(y0.shape)}; add the batch dimension"
        )


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"expected {name} as a tensor, got {type(x).__name__}; give torch.as_tensor({name})")


def _check_times(ts: Tensor, y0: Tensor) -> None:
    _check_tensor("ts", ts)
    if not ts.is_floating_point():
        raise ValueError(f"expected floating-point ts, got {ts.dtype}; call ts.float()")
    if ts.device != y0.device:
        raise ValueError(f"expected ts on the device of y0, {y0.device}, got {ts.device}; move one of them")
    if ts.dim() not in (1, 2) or ts.shape[-1] == 0 or (ts.dim() == 2 and len(ts) != len(y0)):
        raise ValueError(f"expected ts of shape (T,) or ({len(y0)}, T) with T >= 1, got {tuple(ts.shape)}")
    if ts.dim() == 1:
        _check_clock(tuple(ts.tolist()))
    else:
        _check_rows(ts.tolist())


@lru_cache(maxsize=32)
def _check_clock(times: tuple[float, ...]) -> None:
    """`_check_rows` of one row; remembered, for training solves the same span again and again."""
    _check_rows([[*times]])


def _check_rows(rows: list[list[float]]) -> None:
    if not all(map(isfinite, chain.from_iterable(rows))):
        raise ValueError("expected finite ts, got NaN or infinity; fill padding with each row's last time")
    if rows != [*map(sorted, rows)] and rows != [sorted(row, reverse=True) for row in rows]:
        raise ValueError("expected ts that increase in every row, or decrease in every row, got neither; sort them")


def _check_leaves(name: str, context: Any, y0: Tensor) -> None:
    for leaf in leaves(context):
        if leaf.dim() == 0 or len(leaf) != len(y0):
            raise ValueError(
                f"expected every leaf of {name} with leading dimension {len(y0)} as y0, got {tuple(leaf.shape)}; "
                "expand it, or make it a parameter or buffer of the field"
            )
        if leaf.device != y0.device:
            raise ValueError(f"expected {name} on the device of y0, {y0.device}, got {leaf.device}; move one of them")
