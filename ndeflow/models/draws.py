"""Sampled paths of a stochastic model: every row solved once a draw, with noise of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ndeflow.contracts import Batch, Output
from ndeflow.models.base import Model
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.field import leaves, replace_leaves
from ndeflow.numerics.solution import Solution


def check_draws(draws: int, eval_draws: int) -> None:
    """Raise ValueError unless there is a draw in training and in evaluation."""
    if min(draws, eval_draws) < 1:
        raise ValueError(f"expected at least one draw, got draws={draws}, eval_draws={eval_draws}")


def solve_draws(
    model: Model,
    y0: Tensor,
    ts: Tensor,
    context: Any,
    batch: Batch,
    decode: Callable[[Tensor, Batch], Tensor],
    draws: int,
) -> Output:
    """A model's answer from S sampled paths a row: prediction (S, B, ...), or (B, ...) where S is 1.

    y0 (B, d), ts (B, T), context with leaves (B, ...); decode: states (B, T, d) of one draw and the batch ->
    its prediction. A path is a function of the model's noise seed, the row's `batch.index` and the draw's number.
    """
    solution = solve_starts(model, y0.expand(draws, *y0.shape), ts, context, batch.index)
    states = solution.ys.unflatten(0, (draws, len(y0)))
    prediction = torch.stack([decode(draw, batch) for draw in states])
    many = draws > 1
    return Output(prediction if many else prediction[0], (solution,), draws=many)


def solve_starts(
    model: Model,
    starts: Tensor,
    ts: Tensor,
    context: Any,
    index: Tensor,
    integrands: Sequence[tuple[Integrand, None]] = (),
) -> Solution:
    """The solution of S B rows, draw by draw, from starts (S, B, d): ts (B, T), leaves of the context (B, ...) and
    index (B,) are those of each draw; integrands have no context of their own.
    """
    draws = len(starts)
    return model.solve(
        starts.flatten(0, 1),
        _repeated(ts, draws),
        context=context if draws == 1 else replace_leaves(context, [_repeated(x, draws) for x in leaves(context)]),
        integrands=integrands,
        index=draw_index(index, draws),
    )


def draw_index(index: Tensor, draws: int) -> Tensor:
    """Keys of the noise of S draws of B rows, (S B,): the draw's number in the upper half of the key."""
    return (index + (torch.arange(draws, device=index.device)[:, None] << 32)).flatten()


def _repeated(x: Tensor, draws: int) -> Tensor:
    """(B, ...) S times along the rows, (S B, ...)."""
    return x if draws == 1 else x.repeat(draws, *[1] * (x.dim() - 1))
