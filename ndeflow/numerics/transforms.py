"""What a solve does under the function transforms of torch.func: it refuses those that it cannot go through."""

from __future__ import annotations

from typing import Any

from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def refuse_vmap() -> None:
    """Raise ValueError inside `torch.func.vmap`, under which no step can be accepted or rejected."""
    active = _active()
    if active and any(one.key() == TransformType.Vmap for one in active):
        raise ValueError(
            "expected a solve outside of torch.func.vmap, jacfwd and hessian, got one inside; solve takes batches: "
            "give y0 of shape (B, *state), with times of shape (B, T) and contexts (B, ...)"
        )


def refuse_all(adjoint: str) -> None:
    """Raise ValueError inside any transform, which an adjoint with a backward pass of its own cannot see through."""
    if transformed():
        raise ValueError(
            f"expected {adjoint} outside of the transforms of torch.func, got it inside grad, jvp or another; "
            "use Direct() there, or torch.autograd.grad"
        )


def transformed() -> bool:
    """Whether a transform is active."""
    return bool(_active())


def differentiated_forward() -> bool:
    """Whether a level of `torch.autograd.forward_ad` is open."""
    return forward_ad._current_level >= 0


def _active() -> list[Any]:
    return get_interpreter_stack() or []
