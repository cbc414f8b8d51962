"""When a solve is compiled: what is kept of every field, and the decision to switch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal, inspect
from ndeflow.numerics.fingerprint import Versions, noted, survey
from ndeflow.numerics.stepper import Eager, Stepper
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.transforms import transformed

if TYPE_CHECKING:
    from ndeflow.numerics.engine import Engine, Entry

VERSIONS = 8  # of one field's plain attributes: after so many, they are taken to change from solve to solve

_log = logging.getLogger("ndeflow")


@dataclass
class Account:
    """What a field has cost in solves that record gradients, and what was compiled for it.

    evaluations: so far, until it is switched: compiled from now on. versions: of its plain attributes. said: refusals
    that were reported.
    """

    evaluations: int = 0
    switched: bool = False
    entries: dict[Hashable, Entry] = field(default_factory=dict)
    versions: Versions = field(default_factory=Versions)
    said: set[str] = field(default_factory=set)


_accounts: WeakKeyDictionary[nn.Module, Account] = WeakKeyDictionary()


def account(module: nn.Module) -> Account:
    """The account of a field, opened at the first call."""
    found = _accounts.get(module)
    if found is None:
        found = _accounts[module] = Account()
    return found


def stepper_for(solver: Any, system: InitialValue, recording: bool) -> Stepper:
    """What a solve computes its steps with: an engine where it is to be compiled.

    recording: the solve records gradients. Raises ValueError with the reason where `solver.compile` is "on" and the
    solve cannot be compiled; with "auto" the reason is logged once for each field.
    """
    module, eager = system.problem.field, Eager(solver, system, solver.start)
    if solver.compile == "off":
        return eager
    obstacle = _obstacle(system)
    if obstacle is not None:
        _refused(solver, module, obstacle, None)
        return eager
    mine = account(module)
    if not _due(solver, mine, recording):
        return Eager(solver, system, solver.start, mine if recording else None)
    engine = _engine(solver, system, mine, recording)
    if isinstance(engine, str):
        _refused(solver, module, engine, mine)
        return eager
    return engine


@cache
def _compiler() -> str | None:
    """Why nothing can be compiled for the CPU of this machine; None: it can."""
    found = any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))
    return None if found else "no C++ compiler was found; install g++ or clang"


def _engine(solver: Any, system: InitialValue, mine: Account, recording: bool) -> Engine | str:
    """The engine of a solve, or why there is none."""
    from ndeflow.numerics.engine import Engine, Entry  # here, for importing the compiler takes half a second

    module = system.problem.field
    modules = [module, *(integrand for integrand, _ in system.integrands)]
    now = survey(modules, mine.versions.reads)
    version = mine.versions.number(now)
    if version >= VERSIONS:
        return f"{mine.versions.changing()} changes from solve to solve; pass it as context"
    key = (version, solver.method, solver.batching, *_setting(system))
    if key not in mine.entries:
        mine.entries[key] = Entry.of(system, now.tensors, mine.versions.reads)
    engine = Engine(solver, system, mine.entries[key], modules, now.tensors)
    _prepare(engine, mine.versions, version, recording)
    return engine if engine.entry.refusal is None else engine.entry.refusal


def _due(solver: Any, mine: Account, recording: bool) -> bool:
    """Whether this solve is to be compiled; only those that record gradients count, and switch."""
    if solver.compile == "auto" and recording and not mine.switched:
        mine.switched = mine.evaluations >= solver.compile_after
    return solver.compile == "on" or mine.switched


def _obstacle(system: InitialValue) -> str | None:
    """What forbids compilation whatever the field does."""
    y0 = system.problem.y0
    if not isinstance(system.problem.field, nn.Module):
        return "it is not an nn.Module, so that its parameters cannot be found; wrap it in a module"
    if y0.is_complex():
        return "its state is complex; use view_as_real"
    if transformed():
        return "it is under a torch.func transform"
    return _compiler() if y0.device.type == "cpu" else None


def _setting(system: InitialValue) -> tuple[Hashable, ...]:
    """What a program of a field depends on beside its attributes and the number of rows."""
    y0, edges = system.problem.y0, system.segments.edges
    conditions = tuple((x.dtype, x.shape[1:], x.requires_grad) for x in system.conditions())
    modules = tuple(id(module) for module, _ in system.integrands)
    ambient, threads = replay.Ambient.of(y0), torch.get_num_threads()
    return y0.dtype, y0.device, y0.shape[1:], edges.dim(), system.dense, conditions, modules, ambient, threads


def _prepare(engine: Engine, versions: Versions, version: int, recording: bool) -> None:
    """Make the programs that this solve needs, or note why they cannot be made."""
    entry = engine.entry
    for backward in (False, True)[: 1 + recording]:
        if entry.refusal is None and backward not in entry.prepared:
            entry.prepared.add(backward)
            before = survey(engine.modules)
            try:
                with noted(versions.reads):
                    inspect(engine.modules)
                engine.prepare(backward)
            except Refusal as refusal:
                entry.refusal = str(refusal)
            versions.settle(version, before, survey(engine.modules))


def _refused(solver: Any, module: Any, reason: str, mine: Account | None) -> None:
    """Raise where compilation was demanded; else say the reason, once for each field."""
    name = type(module).__name__
    if solver.compile == "on":
        raise ValueError(f'expected a field that can be compiled, got {name}: {reason}, or use compile="off"')
    if mine is not None and reason not in mine.said:
        mine.said.add(reason)
        _log.warning("%s is not compiled: %s", name, reason)
