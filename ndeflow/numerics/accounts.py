"""What is kept of every field beside the field itself: its cost so far, and what was compiled for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from ndeflow.numerics.fingerprint import Survey, Versions
from ndeflow.numerics.watch import Watch

if TYPE_CHECKING:
    from ndeflow.numerics.engine import Engine
    from ndeflow.numerics.entry import Entry


class Last(NamedTuple):
    """The engine of the last solve of a field, without the field, and what it was made for: for others it is not."""

    now: Survey
    about: tuple[Any, ...]
    engine: Engine


@dataclass
class Account:
    """What a field has cost in solves that record gradients, and what was compiled for it.

    evaluations: so far, until it is switched: compiled from now on where it can be. compiled: whether a solve that
    records gradients was. seconds: spent compiling. versions: of its plain attributes. watch: on its modules. last: for
    the next solve. said: what was reported. compiling: now.
    """

    evaluations: int = 0
    switched: bool = False
    compiled: bool = False
    seconds: float = 0.0
    entries: dict[Hashable, Entry] = field(default_factory=dict)
    versions: Versions = field(default_factory=Versions)
    watch: Watch = field(default_factory=Watch)
    last: Last | None = None
    said: set[str] = field(default_factory=set)
    compiling: bool = False

    def count(self, evaluations: int) -> None:
        """Add evaluations."""
        self.evaluations += evaluations

    def first(self, remark: str) -> bool:
        """Whether this was not said before; from now on it was."""
        new = remark not in self.said
        self.said.add(remark)
        return new

    def state_dict(self) -> dict[str, Any]:
        """What decides when the field is switched, as plain values."""
        return {"evaluations": self.evaluations, "switched": self.switched}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what another process has counted; what was compiled here stays."""
        self.evaluations, self.switched = (state[name] for name in ("evaluations", "switched"))


_accounts: WeakKeyDictionary[nn.Module, Account] = WeakKeyDictionary()


def account(module: nn.Module) -> Account:
    """The account of a field, opened at the first call."""
    found = _accounts.get(module)
    if found is None:
        found = _accounts[module] = Account()
    return found


def known(module: nn.Module) -> Account | None:
    """The account of a module that has been solved; None: it has not."""
    return _accounts.get(module)
