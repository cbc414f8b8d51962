"""Whether what is known of modules still holds: told in a fraction of the time that looking again takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import is_
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from ndeflow.numerics.fingerprint import SCALARS, Attribute, Survey, picture, survey

_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_MISSING = object()
_NOT_SET = (set(dir(nn.Module)) | set(vars(nn.Module()))) - {"forward", "training"}  # by users of modules


class Part(NamedTuple):
    """What a module was; it is known again by its dictionary of parameters, so that none is kept alive.

    plain: names of attributes that were read, and are what they are as long as they are the same objects. held: see
    `_held`. other: names and pictures of further attributes that were read.
    """

    plain: list[str]
    held: list[Any]
    other: list[tuple[str, Any]]

    @classmethod
    def of(cls, module: nn.Module, read: Sequence[str]) -> Part:
        values = [(name, module.__dict__.get(name, _MISSING)) for name in read]
        plain = [name for name, x in values if _is_plain(x)]
        other = [(name, picture(x)) for name, x in values if not _is_plain(x)]
        return cls(plain, _held(module, plain), other)

    def same(self, module: nn.Module) -> bool:
        """Whether a module is still that, without hooks."""
        own, held = module.__dict__, _held(module, self.plain)
        return (
            not any(map(own.__getitem__, _HOOKS))
            and len(held) == len(self.held)
            and all(map(is_, held, self.held))
            and (not self.other or all([picture(own.get(name, _MISSING)) == seen for name, seen in self.other]))
        )


@final
class Watch:
    """A survey of modules, made anew when something in it has changed; values of tensors may."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._among = -1

    def look(self, modules: Sequence[nn.Module], among: set[Attribute]) -> Survey:
        """As `survey`: the same object as long as it holds, and as its tensors have the same storage."""
        if not self._holds(modules, len(among)):
            self._note(modules, among)
        return self._survey

    def _note(self, modules: Sequence[nn.Module], among: set[Attribute]) -> None:
        self._survey, self._among, self._parts = survey(modules, among), len(among), []
        read: dict[int, list[str]] = {}
        for me, name in sorted(among):
            if name not in _NOT_SET:
                read.setdefault(me, []).append(name)
        stack = list(modules)[::-1]
        while stack:
            part = stack.pop()
            self._parts.append(Part.of(part, read.get(id(part), [])))
            stack += [x for x in reversed(part._modules.values()) if x is not None]
        self._kinds = [_kind(x) for x in self._survey.tensors]

    def _holds(self, modules: Sequence[nn.Module], among: int) -> bool:
        stack = list(modules)[::-1]
        for known in self._parts:
            part = stack.pop() if stack else None
            if part is None or not known.same(part):
                return False
            if part._modules:
                stack += [x for x in reversed(part._modules.values()) if x is not None]
        return among == self._among and not stack and [_kind(x) for x in self._survey.tensors] == self._kinds


def _held(module: nn.Module, plain: Sequence[str]) -> list[Any]:
    """The class of a module, its parameters, buffers and attributes, and the names of these and of its parts."""
    own = module.__dict__
    parameters, buffers = own["_parameters"], own["_buffers"]
    tensors = parameters, buffers, *parameters, *parameters.values(), *buffers, *buffers.values()
    return [type(module), *tensors, *own["_modules"], *map(own.get, plain, repeat(_MISSING))]


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.requires_grad, x.dtype, x.device, x.shape, x.stride(), x.data_ptr()


def _is_plain(value: Any) -> bool:
    """Whether it is what it is as long as it is the same object."""
    return value is _MISSING or isinstance(value, SCALARS)
