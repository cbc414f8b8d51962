"""Whether what is known of modules still holds: told in a fraction of the time that looking again takes."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from ndeflow.numerics.fingerprint import SCALARS, Attribute, Survey, picture, survey

_GONE = object()
_NOT_SET = (set(dir(nn.Module)) | set(vars(nn.Module()))) - {"forward", "training"}  # by users of modules
_KIND = attrgetter("requires_grad", "dtype", "device", "shape")
_STRUCTURE = itemgetter(
    *("_parameters", "_buffers", "_modules"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
)


class Part(NamedTuple):
    """What a module was, without hooks; it is known again by its dictionary of parameters, so that none is kept alive.

    names, tensors: of its parameters and of its buffers. parts: names of its parts. missing: attributes that were read
    and are not its own. plain: those with values that are what they are as long as they are the same objects. other:
    further ones, with pictures.
    """

    kind: type[nn.Module]
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    names: tuple[list[str], list[str]]
    tensors: tuple[list[Any], list[Any]]
    parts: list[str]
    missing: set[str]
    plain: list[tuple[str, Any]]
    other: list[tuple[str, Any]]

    @classmethod
    def of(cls, module: nn.Module, read: Sequence[str]) -> Part:
        own = module.__dict__
        values = [(name, own[name]) for name in read if name in own]
        plain = [(name, x) for name, x in values if isinstance(x, SCALARS)]
        other = [(name, picture(x)) for name, x in values if not isinstance(x, SCALARS)]
        parameters, buffers, parts, *_ = _STRUCTURE(own)
        names, tensors = ([*parameters], [*buffers]), ([*parameters.values()], [*buffers.values()])
        missing = set(read) - own.keys()
        return cls(type(module), parameters, buffers, names, tensors, [*parts], missing, plain, other)

    def same(self, module: nn.Module) -> bool:
        """Whether a module is still that, without hooks."""
        own = module.__dict__
        parameters, buffers, parts, after, before, back, backs = _STRUCTURE(own)
        return (
            type(module) is self.kind
            and parameters is self.parameters
            and buffers is self.buffers
            and not (after or before or back or backs)
            and not ((parts or self.parts) and [*parts] != self.parts)
            and not ((parameters or self.names[0]) and not _holds(parameters, self.names[0], self.tensors[0]))
            and not ((buffers or self.names[1]) and not _holds(buffers, self.names[1], self.tensors[1]))
            and (not self.missing or own.keys().isdisjoint(self.missing))
            and not (self.plain and any([own.get(name, _GONE) is not x for name, x in self.plain]))
            and not (self.other and any([picture(own.get(name, _GONE)) != seen for name, seen in self.other]))
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
        self._kinds = _kinds(self._survey.tensors)

    def _holds(self, modules: Sequence[nn.Module], among: int) -> bool:
        stack = [*reversed(modules)]
        for known in self._parts:
            if not (stack and known.same(part := stack.pop())):
                return False
            if known.parts:
                stack += [x for x in reversed(part._modules.values()) if x is not None]
        return among == self._among and not stack and _kinds(self._survey.tensors) == self._kinds


def _holds(found: dict[str, Any], names: list[str], tensors: list[Any]) -> bool:
    """Whether a dictionary is of these names and the very same tensors."""
    return [*found] == names and all(map(is_, found.values(), tensors))


def _kinds(tensors: Sequence[Tensor]) -> list[Any]:
    """What of tensors must stay, beside what they are: their values may change."""
    return [*map(_KIND, tensors), *map(Tensor.stride, tensors), *map(Tensor.data_ptr, tensors)]
