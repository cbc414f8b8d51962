"""A scalar and its gradient by a module's parameters as one program."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ndeflow.numerics.audit import Refusal, inspect
from ndeflow.numerics.compiled import Program, kept_in

_log = logging.getLogger("ndeflow")


@final
class Fused:
    """function(module, *inputs), a scalar, with derivatives by the module's parameters and by nothing else.

    function: may take derivatives itself; of a residual with second derivatives, those of all orders are computed 5 to
    8 times as fast as one by one. inputs: (N, ...), any N. The scalar and its gradient are compiled together at the
    first call, about half a minute once, and are afterwards computed together. What the function reads beside
    parameters, buffers and inputs is taken to stay as it was then. Raises ValueError, with the reason, where the
    function cannot be compiled.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._programs: WeakKeyDictionary[nn.Module, dict[Hashable, Program]] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        learned = {name: x for name, x in tensors.items() if x.requires_grad}
        rest = {name: x for name, x in tensors.items() if name not in learned}
        flat = [x.detach() for x in (*learned.values(), *rest.values(), *inputs)]
        results = self._program(module, list(learned), list(rest), flat, len(inputs))(flat)
        return _Known.apply(results, *learned.values())  # pyright: ignore[reportReturnType]

    def _program(self, module: nn.Module, learned: list[str], rest: list[str], flat: list[Tensor], k: int) -> Program:
        """That for these modules and inputs, made where there is none; k: how many of `flat` are inputs."""
        rows, known = len(flat[-1]), self._programs.setdefault(module, {})
        shapes = [x.shape for x in flat[:-k]] + [x.shape[1:] for x in flat[-k:]]
        kind = (*learned, *shapes, *((x.dtype, x.device) for x in flat))
        program = known.get(kind)
        if program is not None and program.fits(rows, flat):
            return program
        key = kind if program is None else (*kind, rows)
        if key not in known:
            known[key] = self._made(module, learned, rest, flat, k)
        return known[key]

    def _made(self, module: nn.Module, learned: list[str], rest: list[str], flat: list[Tensor], k: int) -> Program:
        call, names = _Call(module, self.function), [f"module.{name}" for name in (*learned, *rest)]

        def both(*flat: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in flat[: len(learned)]]
                given = dict(zip(names, (*leaves, *flat[len(learned) : -k]), strict=True))
                value = torch.func.functional_call(call, given, flat[-k:])
                return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]

        name, start = module._get_name(), time.perf_counter()
        _log.warning("a penalty of %s is being compiled: about half a minute once, kept in %s", name, kept_in())
        try:
            inspect([module])
            program = Program(both, flat, [False] * len(names) + [True] * k, {})
        except Refusal as refusal:
            raise ValueError(f"expected what can be compiled, got a penalty of {name}: {refusal}") from refusal
        _log.warning("a penalty of %s was compiled in %.0f seconds", name, time.perf_counter() - start)
        return program


@final
class _Call(nn.Module):
    """A function of a module as a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.module, *inputs)


@final
class _Known(torch.autograd.Function):
    """A scalar whose derivatives by some tensors are there already: results are the scalar, then one for each."""

    @staticmethod
    def forward(ctx: Any, results: list[Tensor], *tensors: Tensor) -> Tensor:
        value, *gradients = results
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return (None, *(upstream[0] * gradient for gradient in ctx.saved_tensors))
