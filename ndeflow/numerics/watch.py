"""Whether what is known of modules still holds: told in a fraction of the time that looking again takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, Self, final

from torch import Tensor, nn

from ndeflow.numerics.fingerprint import CODE, INTERNAL, SCALARS, Attribute, Survey, classes, hooks, picture, survey
from ndeflow.numerics.outside import watched

Named = tuple[Mapping[str, Any], str]

_GONE = object()
_OTHERWISE = repeat(_GONE)
_EVERY = set(dir(nn.Module)) - {"forward"}  # what all modules have
_KIND = attrgetter("requires_grad", "dtype", "device", "shape")
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_STRUCTURE = itemgetter("_parameters", "_buffers", *_HOOKS)


class Seen(NamedTuple):
    """What was found in dictionaries, each under its name.

    values: compared by what they are. pictures: of those that may change within, by their places.
    """

    names: list[str]
    values: list[Any]
    pictures: dict[int, Any]

    @classmethod
    def of(cls, found: Sequence[Named]) -> Self:
        values = [where.get(name, _GONE) for where, name in found]
        plain = [x is _GONE or isinstance(x, (*SCALARS, *CODE)) and not _closed(x) for x in values]
        pictures = {i: picture(x) for i, (x, same) in enumerate(zip(values, plain, strict=True)) if not same}
        names = [name for _, name in found]
        return cls(names, [None if i in pictures else x for i, x in enumerate(values)], pictures)

    def still(self, get: Callable[..., Any], *where: Sequence[Any]) -> bool:
        """Whether they are; get: gives what is under a name, or another value, of each of `where` if that is given."""
        found = map(get, *where, self.names, _OTHERWISE)
        if not self.pictures:
            return all(map(is_, found, self.values))
        pairs, pictures = enumerate(zip(found, self.values, strict=True)), self.pictures
        return all([picture(now) == pictures[i] if i in pictures else now is before for i, (now, before) in pairs])


class Part(NamedTuple):
    """What a module was, without hooks; it is known again by its dictionary of parameters, so that none is kept alive.

    structure: its dictionaries of parameters, buffers and hooks; `Watch` looks into them. parts: names of its parts.
    missing: attributes that were read and are not its own. own: the others.
    """

    kind: type[nn.Module]
    structure: tuple[dict[Any, Any], ...]
    parts: list[str]
    missing: set[str]
    own: Seen

    @classmethod
    def of(cls, module: nn.Module, read: Sequence[str]) -> Self:
        own = module.__dict__
        seen = Seen.of([(own, name) for name in read if name in own])
        return cls(type(module), _STRUCTURE(own), [*module._modules], set(read) - own.keys(), seen)

    def above(self, module: nn.Module) -> list[Named]:
        """Where its classes have, or may have, what is missing: in each that its user wrote."""
        kinds = [vars(kind) for kind in classes(module)]
        return [(kind, name) for kind in kinds for name in sorted(self.missing) if name in kind or name not in _EVERY]

    def same(self, module: nn.Module) -> bool:
        """Whether a module is still that, but for what is in its structure."""
        own = module.__dict__
        return (
            type(module) is self.kind
            and all(map(is_, _STRUCTURE(own), self.structure))
            and [*own["_modules"]] == self.parts
            and own.keys().isdisjoint(self.missing)
            and (not self.own.names or self.own.still(own.get))
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
        stack, above = list(modules)[::-1], list[Named]()
        while stack:
            module = stack.pop()
            if hooks(module):  # it is none that would be known again
                self._parts.clear()
                return
            part = Part.of(module, read.get(id(module), []))
            self._parts.append(part)
            above += part.above(module)
            stack += [x for x in reversed(module._modules.values()) if x is not None]
        self._inside = [x for part in self._parts for x in part.structure[: -len(_HOOKS)]]
        self._hooks = [x for part in self._parts for x in part.structure[-len(_HOOKS) :]]
        self._counts = [*map(len, self._inside)]
        self._names = [*chain.from_iterable(self._inside)]
        self._tensors = [*chain.from_iterable(x.values() for x in self._inside)]
        self._classes, self._above = [kind for kind, _ in above], Seen.of(above)
        self._variables = [*self._survey.variables.values()]
        self._values = [self._survey.attributes[key] for key in self._survey.variables]

    def _holds(self, modules: Sequence[nn.Module], among: int) -> bool:
        stack = [*reversed(modules)]
        for known in self._parts:
            if not (stack and known.same(part := stack.pop())):
                return False
            if known.parts:
                stack += [x for x in reversed(part._modules.values()) if x is not None]
        return (
            among == self._among
            and not stack
            and not any(self._hooks)
            and [*map(len, self._inside)] == self._counts
            and [*chain.from_iterable(self._inside)] == self._names
            and all(map(is_, chain.from_iterable(map(dict.values, self._inside)), self._tensors))
            and self._above.still(MappingProxyType.get, self._classes)
            and [watched(variable.value()) for variable in self._variables] == self._values
            and _kinds(self._survey.tensors) == self._kinds
        )


def _closed(value: Any) -> bool:
    """Whether a value is a function that may keep its owner alive; by a picture it is not kept."""
    return isinstance(value, FunctionType) and any(name != "__class__" for name in value.__code__.co_freevars)


def _kinds(tensors: Sequence[Tensor]) -> list[Any]:
    """What of tensors must stay, beside what they are: their values may change."""
    return [*map(_KIND, tensors), *map(Tensor.stride, tensors), *map(Tensor.data_ptr, tensors)]
