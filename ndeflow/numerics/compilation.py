"""When a solve is compiled: what is kept of every field, and the decision to switch."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import compiler
from ndeflow.numerics.engine import Engine, Entry
from ndeflow.numerics.fingerprint import Fingerprint, survey
from ndeflow.numerics.system import InitialValue

VERSIONS = 8  # of one field's plain attributes: after so many, they are taken to change from solve to solve

_log = logging.getLogger("ndeflow")


@dataclass
class Account:
    """What a field has cost in solves that record gradients, and what was compiled for it.

    switched: compiled from now on. counters: of solves whose evaluations are not yet in `settled`. volatile: plain
    attributes that the field writes itself, which are left out of its versions. said: refusals that were reported.
    """

    settled: int = 0
    switched: bool = False
    counters: list[list[int]] = field(default_factory=list)
    entries: dict[Hashable, Entry] = field(default_factory=dict)
    versions: list[Fingerprint] = field(default_factory=list)
    volatile: set[tuple[int, str]] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    @property
    def evaluations(self) -> int:
        """Evaluations so far in solves that record gradients."""
        self.settled += sum(counter[0] for counter in self.counters)
        self.counters.clear()
        return self.settled

    def version(self, now: Fingerprint) -> int:
        """The number of this version of the field's attributes, new or known."""
        for attribute in self.volatile:
            now.pop(attribute, None)
        if now not in self.versions:
            self.versions.append(now)
        return self.versions.index(now)

    def ignore(self, attributes: set[tuple[int, str]]) -> None:
        """Leave attributes out of all versions."""
        self.volatile |= attributes
        self.versions = [{k: v for k, v in version.items() if k not in attributes} for version in self.versions]


_accounts: WeakKeyDictionary[nn.Module, Account] = WeakKeyDictionary()


def account(module: nn.Module) -> Account:
    """The account of a field, opened at the first call."""
    found = _accounts.get(module)
    if found is None:
        found = _accounts[module] = Account()
    return found


def engine_for(solver: Any, system: InitialValue, recording: bool) -> Engine | None:
    """The engine of a solve, or None where it is not to be compiled.

    recording: the solve records gradients. Raises ValueError with the reason where `solver.compile` is "on" and the
    solve cannot be compiled; with "auto" the reason is logged once for each field.
    """
    module = system.problem.field
    if solver.compile == "off":
        return None
    obstacle = _obstacle(system)
    if obstacle is not None:
        return _refused(solver, module, obstacle, None)
    mine = account(module)
    if not _due(solver, system, mine, recording):
        return None
    modules = [module, *(integrand for integrand, _ in system.integrands)]
    tensors, now = survey(modules)
    version = mine.version(now)
    if version >= VERSIONS:
        return _refused(solver, module, f"{_changing(mine)} changes from solve to solve; pass it as context", mine)
    key = (version, solver.method, *_setting(system))
    if key not in mine.entries:
        mine.entries[key] = Entry.of(system, tensors)
    engine = Engine(solver, system, mine.entries[key], modules, tensors)
    _prepare(engine, mine, recording)
    return engine if engine.entry.refusal is None else _refused(solver, module, engine.entry.refusal, mine)


def _due(solver: Any, system: InitialValue, mine: Account, recording: bool) -> bool:
    """Whether this solve is to be compiled; solves that record gradients are counted, and alone can switch."""
    if solver.compile == "on" or mine.switched:
        return True
    if recording:
        mine.switched = mine.evaluations >= solver.compile_after
        mine.counters.append(system.counter)
    return mine.switched


def _obstacle(system: InitialValue) -> str | None:
    """What forbids compilation whatever the field does."""
    y0 = system.problem.y0
    if not isinstance(system.problem.field, nn.Module):
        return "it is not an nn.Module, so that its parameters cannot be found; wrap it in a module"
    if y0.is_complex():
        return "its state is complex; use view_as_real"
    if peek_interpreter_stack() is not None:
        return "it is under a torch.func transform"
    return compiler() if y0.device.type == "cpu" else None


def _setting(system: InitialValue) -> tuple[Hashable, ...]:
    """What a program of a field depends on beside its attributes and the number of rows."""
    y0, edges = system.problem.y0, system.segments.edges
    conditions = tuple((x.dtype, x.shape[1:], x.requires_grad) for x in system.conditions())
    modules = tuple(id(module) for module, _ in system.integrands)
    ambient, threads = replay.Ambient.of(y0), torch.get_num_threads()
    return y0.dtype, y0.device, y0.shape[1:], edges.dim(), system.dense, conditions, modules, ambient, threads


def _prepare(engine: Engine, mine: Account, recording: bool) -> None:
    """Make the programs that this solve needs, or note why they cannot be made."""
    entry = engine.entry
    for backward in (False, True)[: 1 + recording]:
        if entry.refusal is None and backward not in entry.prepared:
            entry.prepared.add(backward)
            _, before = survey(engine.modules)
            try:
                engine.prepare(backward)
            except Refusal as refusal:
                entry.refusal = str(refusal)
            _, after = survey(engine.modules)
            mine.ignore({k for k in after if before.get(k) != after[k]})


def _changing(mine: Account) -> str:
    first, last = mine.versions[0], mine.versions[-1]
    return ", ".join(sorted({name for (_, name), v in last.items() if first.get((_, name)) != v})) or "its parts"


def _refused(solver: Any, module: Any, reason: str, mine: Account | None) -> None:
    """Raise where compilation was demanded; else say the reason, once for each field."""
    name = type(module).__name__
    if solver.compile == "on":
        raise ValueError(f'expected a field that can be compiled, got {name}: {reason}, or use compile="off"')
    if mine is not None and reason not in mine.said:
        mine.said.add(reason)
        _log.warning("%s is not compiled: %s", name, reason)
