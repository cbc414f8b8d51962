"""Whether what is known of modules still holds: told in a fraction of the time that looking again takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from ndeflow.numerics.fingerprint import CODE, INTERNAL, SCALARS, Attribute, Survey, classes, hooks, picture, survey

Compared = Callable[[Any, Any], bool]

_GONE = object()
_EVERY = set(dir(nn.Module)) - {"forward"}  # what all modules have
_KIND = attrgetter("requires_grad", "dtype", "device", "shape")
_STRUCTURE = itemgetter(
    *("_parameters", "_buffers", "_modules"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
)


class Part(NamedTuple):
    """What a module was, without hooks; it is known again by its dictionary of parameters, so that none is kept alive.

    names, tensors: of its parameters and of its buffers. parts: names of its parts. missing: attributes that were read
    and are not its own. own: the others, what they were and how that is compared. above: the missing ones in each class
    that its user wrote, by the dictionary of that.
    """

    kind: type[nn.Module]
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    names: tuple[list[str], list[str]]
    tensors: tuple[list[Any], list[Any]]
    parts: list[str]
    missing: set[str]
    own: list[tuple[str, Any, Compared]]
    above: Sequence[tuple[Mapping[str, Any], str, Any, Compared]]

    @classmethod
    def of(cls, module: nn.Module, read: Sequence[str]) -> Part:
        parameters, buffers, parts, *_ = _STRUCTURE(module.__dict__)
        names, tensors = ([*parameters], [*buffers]), ([*parameters.values()], [*buffers.values()])
        missing = set(read) - module.__dict__.keys()
        own = [(name, *_seen(module.__dict__[name])) for name in read if name not in missing]
        kinds = [vars(kind) for kind in classes(module)]
        asked = [(kind, name) for kind in kinds for name in sorted(missing) if name in kind or name not in _EVERY]
        above = [(kind, name, *_seen(kind.get(name, _GONE))) for kind, name in asked]
        return cls(type(module), parameters, buffers, names, tensors, [*parts], missing, own, above)

    def same(self, module: nn.Module) -> bool:
        """Whether a module is still that, without hooks."""
        own = module.__dict__
        parameters, buffers, parts, after, before, back, backs = _STRUCTURE(own)
        return (  # most parts have few of these: what is empty is not looked into
            type(module) is self.kind
            and parameters is self.parameters
            and buffers is self.buffers
            and not (after or before or back or backs)
            and not ((parts or self.parts) and [*parts] != self.parts)
            and not ((parameters or self.names[0]) and not _holds(parameters, self.names[0], self.tensors[0]))
            and not ((buffers or self.names[1]) and not _holds(buffers, self.names[1], self.tensors[1]))
            and (not self.missing or own.keys().isdisjoint(self.missing))
            and (not self.own or all([same(own.get(name, _GONE), seen) for name, seen, same in self.own]))
            and (not self.above or all([same(kind.get(name, _GONE), seen) for kind, name, seen, same in self.above]))
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
        self._kinds = _kinds(self._survey.tensors)
        read: dict[int, list[str]] = {}
        for me, name in sorted(among):
            if name not in INTERNAL:
                read.setdefault(me, []).append(name)
        stack = list(modules)[::-1]
        while stack:
            part = stack.pop()
            if hooks(part):  # it is none that would be known again
                self._parts.clear()
                return
            self._parts.append(Part.of(part, read.get(id(part), [])))
            stack += [x for x in reversed(part._modules.values()) if x is not None]

    def _holds(self, modules: Sequence[nn.Module], among: int) -> bool:
        stack = [*reversed(modules)]
        for known in self._parts:
            if not (stack and known.same(part := stack.pop())):
                return False
            if known.parts:
                stack += [x for x in reversed(part._modules.values()) if x is not None]
        return among == self._among and not stack and _kinds(self._survey.tensors) == self._kinds


def _seen(value: Any) -> tuple[Any, Compared]:
    """What an attribute was, and how it is compared: by itself, or by a picture where it may change within."""
    if value is _GONE or isinstance(value, (*SCALARS, *CODE)):
        return value, is_
    return picture(value), _pictured


def _pictured(value: Any, seen: Any) -> bool:
    return picture(value) == seen


def _holds(found: dict[str, Any], names: list[str], tensors: list[Any]) -> bool:
    """Whether a dictionary is of these names and the very same tensors."""
    return [*found] == names and all(map(is_, found.values(), tensors))


def _kinds(tensors: Sequence[Tensor]) -> list[Any]:
    """What of tensors must stay, beside what they are: their values may change."""
    return [*map(_KIND, tensors), *map(Tensor.stride, tensors), *map(Tensor.data_ptr, tensors)]
