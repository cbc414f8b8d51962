"""A scalar and its gradient by a module's parameters as one program."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ndeflow.numerics.audit import Refusal, inspect
from ndeflow.numerics.compiled import Program
from ndeflow.numerics.fingerprint import Versions, noted, survey
from ndeflow.numerics.replay import Ambient

_log = logging.getLogger("ndeflow")


@dataclass
class Made:
    """What was made for a module: programs, with what each is for, and the versions of the module that they are for."""

    versions: Versions = field(default_factory=Versions)
    programs: list[tuple[Hashable, Program]] = field(default_factory=list)


@final
class Fused:
    """function(module, *inputs), a scalar, with derivatives by the module's parameters and by nothing else.

    function: may take derivatives itself; of a residual with second derivatives, those of all orders are computed 5 to
    8 times as fast as one by one. inputs: (N, ...), any N. The scalar and its gradient are compiled together at the
    first call, about half a minute once, and are afterwards computed together; anew for a module that has changed. What
    the function reads beside the module and inputs is taken to stay as it was then. Raises ValueError, with the reason,
    where the function cannot be compiled.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._made: WeakKeyDictionary[nn.Module, Made] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        learned = {name: x for name, x in module.named_parameters() if x.requires_grad}
        given = dict((*module.named_parameters(), *module.named_buffers()))
        tensors = {**learned, **given}  # the learned ones first
        flat = [*(x.detach() for x in tensors.values()), *(x.detach().contiguous() for x in inputs)]
        results = self._program(module, list(tensors), len(learned), flat).run(flat)
        return _Known.apply(results, *learned.values())  # pyright: ignore[reportReturnType]

    def _program(self, module: nn.Module, names: list[str], learned: int, flat: list[Tensor]) -> Program:
        """That for the module's tensors by these names, of which the first are learned, and the inputs after them."""
        made, ambient = self._made.setdefault(module, Made()), Ambient.of(flat[-1])
        number = made.versions.number(survey([module], made.versions.reads))
        kind = (number, ambient, *names, learned, *((x.dtype, x.device, x.shape[1:]) for x in flat[len(names) :]))
        for known, program in made.programs:
            if known == kind and program.fits(len(flat[-1]), flat):
                return program
        before = survey([module])
        with ambient(), noted(made.versions.reads):
            program = self._compiled(module, names, learned, flat)
        made.versions.settle(number, before, survey([module], made.versions.reads))
        made.programs.append((kind, program))
        return program

    def _compiled(self, module: nn.Module, names: list[str], learned: int, flat: list[Tensor]) -> Program:
        from ndeflow.numerics.lowering import kept_in  # imports the compiler

        call, count, name = _Call(module, self.function), len(names), module._get_name()

        def both(*flat: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in flat[:learned]]
                tensors = zip(names, (*leaves, *flat[learned:count]), strict=True)
                value = torch.func.functional_call(call, {f"module.{k}": x for k, x in tensors}, flat[count:])
                return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]

        _log.warning("a function of %s is being compiled: about half a minute once, kept in %s", name, kept_in())
        start = time.perf_counter()
        try:
            inspect([module])
            program = Program(both, flat, [i >= count for i in range(len(flat))], {})
        except Refusal as refusal:
            raise ValueError(f"expected what can be compiled, got a function of {name}: {refusal}") from refusal
        _log.warning("a function of %s was compiled in %.0f seconds", name, time.perf_counter() - start)
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
