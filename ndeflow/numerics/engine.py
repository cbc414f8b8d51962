"""A Runge-Kutta solve through compiled programs: its start, its steps, and their vector-Jacobian products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import Program
from ndeflow.numerics.fingerprint import Attribute, noted
from ndeflow.numerics.rewrites import FORWARD, FUNCTIONS
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import InitialValue

VARIANTS = 2  # programs of one function, beside those for a single row: a field may branch on shapes once

Function = Callable[..., list[Tensor]]
Totals = Sequence[Tensor]


class Holder(nn.Module):
    """A field and the integrands of a solve as one module, whose tensors can be replaced for the time of a call."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()

    def names(self) -> list[str]:
        """Of parameters and buffers, each once."""
        return [name for name, _ in (*self.named_parameters(), *self.named_buffers())]


@final
@dataclass
class Entry:
    """What is known of a field in one setting.

    columns: how many integrals it has. reached: which of the module tensors need gradients and get one. reads: collects
    the attributes that its programs have read. programs: of each function, for one row or for more; None in a list:
    there are no more, the function itself is called. prepared: whether the programs of the forward (False) and the
    backward pass (True) were made ahead. refusal: why they cannot.
    """

    columns: int
    reached: list[int]
    reads: set[Attribute]
    programs: dict[tuple[str, bool], list[Program | None]] = field(default_factory=dict)
    prepared: set[bool] = field(default_factory=set)
    refusal: str | None = None

    @classmethod
    def of(cls, system: InitialValue, tensors: Sequence[Tensor], reads: set[Attribute]) -> Self:
        """Found by evaluating the field once; raises ValueError for rates of the wrong shape."""
        apart = system.with_conditions(system.conditions())
        with torch.enable_grad():
            _, slope = apart.open()
        found = replay.grads([slope], tensors, [torch.ones_like(slope)])
        return cls(apart.columns, [i for i, g in enumerate(found) if g is not None], reads)


@final
class Engine(Stepper):
    """The functions of one solve, each called through its program, which is made at the first call.

    A function takes flat tensors: what it is about, then the tensors of the modules, then the context leaves of the
    segment; tolerances are among the first. New values of any of them need no new program. All but the modules' are
    contiguous, as the programs expect.
    """

    compiled: ClassVar[bool] = True

    def __init__(
        self, solver: Any, system: InitialValue, entry: Entry, modules: list[nn.Module], tensors: list[Tensor]
    ) -> None:
        self.solver, self.system, self.entry, self.modules = solver, system, entry, modules
        self.originals, self.tensors = tensors, [x.detach() for x in tensors]
        y0 = system.problem.y0
        self.tolerances = [_number(x, y0.device) for x in (solver.rtol, solver.atol)]
        self.stages = len(solver.tableau.c) - 1
        self.ambient = replay.Ambient.of(y0)
        self.strict = False
        self._leg: InitialValue | None = None
        self._own: list[Tensor] = []

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors of the modules that need gradients, each once."""
        return [x for x in self.originals if x.requires_grad]

    def prepare(self, backward: bool) -> None:
        """Make the programs of a forward or a backward pass; raises `Refusal`."""
        self.strict = True
        z, _ = self.open()
        apart = self.system.with_conditions(self.system.conditions())  # its evaluations are not the solve's
        for leg in list(apart.legs())[:1]:
            half = leg.start.new_full((leg.rows,), 0.5)
            t, h = leg.moment(half, half) if self.solver.apart else leg.moment(0.0, 0.5)
            if backward:
                totals = [x.new_zeros(x.shape) for x in self.wanted(leg)]
                self.pull(leg, (t, h, z, z), (None,) * 5, totals)
                self.pull_slope(leg, t, z, z, totals)
            else:
                slope, _ = self.start(leg, z, None)
                self.step(leg, t, z, h, slope)
        self.strict = False

    def open(self) -> tuple[Tensor, Tensor | None]:
        self.system.columns = self.entry.columns
        return self.system.join(self.system.problem.y0.detach().contiguous(), None), None

    def start(self, leg: Any, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        if slope is not None:
            return slope, self.solver.start(leg, z, slope)
        moving = _number(float(leg.moving), z.device)
        inputs = [leg.start.detach(), leg.length.detach(), moving, z, *self.tolerances]
        found, dtheta = self._run("start", lambda: self._start, inputs, leg)
        leg.count(2)
        return found, dtheta

    def slope(self, leg: Any, z: Tensor) -> Tensor:
        (found,) = self._run("slope", lambda: self._slope, [leg.start.detach(), z], leg)
        leg.count(1)
        return found

    def step(self, leg: Any, t: Tensor, z: Tensor, h: Tensor, carry: Any) -> Step:
        y, carry, ratio, *rest = self._run("step", lambda: self._step, [t, h, z, carry, *self.tolerances], leg)
        leg.count(self.stages)
        mid = rest.pop() if leg.dense else None
        return Step(y, None, ratio, rest.pop() if rest else None, mid, carry)

    def pull(
        self, leg: InitialValue, at: Sequence[Tensor], cotangents: Sequence[Tensor | None], totals: Totals
    ) -> tuple[Tensor, Tensor, Totals]:
        """One vector-Jacobian product of a step taken at (t, h, z, carry).

        cotangents: of y, carry, ratio, stiffness and mid; None: zero. Gives those of z and carry, and `totals`, one for
        each of `wanted`, with their part added.
        """
        t, h, z, carry = at
        given = [torch.zeros_like(z) if c is None else c.contiguous() for c in cotangents[:2]]
        if any(c is not None for c in cotangents[2:]):
            given += self._inner(leg, z, cotangents[2:])
        inputs = [t, h, z, carry, *self.tolerances, *given]
        make = lambda: self._pulled(self._step, (2, 3), 6, len(given))  # noqa: E731
        before, slope, *totals = self._run(f"pull {len(given)}", make, inputs, leg, totals)
        leg.count(self.stages)
        return before, slope, totals

    def pull_slope(
        self, leg: InitialValue, t: Tensor, z: Tensor, cotangent: Tensor, totals: Totals
    ) -> tuple[Tensor, Totals]:
        """The vector-Jacobian product of dz/dt at (t, z): that of z, and the totals."""
        make = lambda: self._pulled(self._slope, (1,), 2, 1)  # noqa: E731
        before, *totals = self._run("pull slope", make, [t, z, cotangent.contiguous()], leg, totals)
        leg.count(1)
        return before, totals

    def wanted(self, leg: InitialValue) -> list[Tensor]:
        """The tensors that get gradients, in the order of the totals: module tensors, then the segment's leaves."""
        self._set(leg)
        return [*(self.tensors[i] for i in self.entry.reached), *(x for x in self._own if x.requires_grad)]

    def _inner(self, leg: InitialValue, z: Tensor, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        """Those of ratio, stiffness and mid, zeros for None; without what there is not."""
        ratio, stiffness, mid = cotangents
        rows = z.new_zeros(len(z))
        found = [rows if ratio is None else ratio.contiguous()]
        if self.solver.tableau.stiffness:
            found.append(rows if stiffness is None else stiffness.contiguous())
        if leg.dense:
            found.append(torch.zeros_like(z) if mid is None else mid.contiguous())
        return found

    def _set(self, leg: InitialValue) -> None:
        if leg is not self._leg:
            self._leg, self._own = leg, leg.conditions()
            self._flat = [*self.tensors, *(x.detach().contiguous() for x in self._own)]

    def _run(
        self, name: str, make: Callable[[], Function], inputs: list[Tensor], leg: InitialValue, totals: Totals = ()
    ) -> Any:
        self._set(leg)
        flat, rows = [*inputs, *totals, *self._flat], leg.rows
        programs = self.entry.programs.setdefault((name, rows == 1), [])
        for program in programs:
            if program is None:
                return make()(*flat)
            if program.fits(rows, flat):
                return program(flat)
        made = self._made(name, make(), flat, len(inputs), len(totals)) if len(programs) < VARIANTS else None
        programs.append(made)
        return self._run(name, make, inputs, leg, totals)

    def _made(self, name: str, function: Function, flat: list[Tensor], inputs: int, totals: int) -> Program | None:
        """The program of a function of flat tensors: inputs, totals, the modules' tensors, and leaves."""
        fixed = min(totals, len(self.entry.reached))
        batched = [x.dim() > 0 for x in flat[:inputs]] + [i >= fixed for i in range(totals)]
        batched += [False] * len(self.tensors) + [True] * len(self._own)
        rules = FUNCTIONS if name.startswith("pull") else FORWARD
        try:
            with self.ambient(), noted(self.entry.reads):
                return Program(function, flat, batched, rules)
        except Refusal:
            if self.strict:
                raise
            return None

    def _step(self, t: Tensor, h: Tensor, z: Tensor, carry: Tensor, *rest: Tensor) -> list[Tensor]:
        """[y, carry, ratio], stiffness where the method has it, mid where states are interpolated."""
        solver = self._tolerant(*rest[:2])
        step = self._bound(z, rest[2:], lambda leg: solver.advance(leg, t, z, h, carry))
        return [x for x in (step.y, step.carry, step.ratio, step.stiffness, step.mid) if x is not None]

    def _start(self, start: Tensor, length: Tensor, moving: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        solver = self._tolerant(*rest[:2])

        def call(leg: Any) -> list[Tensor]:
            leg.start, leg.length, leg.moving = start, length, moving
            slope = leg.slope(z)
            return [slope, solver.start(leg, z, slope)]

        return self._bound(z, rest[2:], call)

    def _slope(self, t: Tensor, z: Tensor, *rest: Tensor) -> list[Tensor]:
        return [self._bound(z, rest, lambda leg: leg(t.to(z.dtype.to_real()), z))]

    def _pulled(self, function: Function, states: Sequence[int], arguments: int, cotangents: int) -> Function:
        """The vector-Jacobian product of the first outputs of a function, for its states and the wanted tensors.

        Its own arguments: those of the function up to the modules' tensors, cotangents, totals, the rest.
        """
        reached, needs = set(self.entry.reached), [x.requires_grad for x in self._own]
        wants = [i in states for i in range(arguments)]
        wants += [i in reached for i in range(len(self.tensors))] + needs
        rest = arguments + cotangents + len(reached) + sum(needs)

        def pulled(*flat: Tensor) -> list[Tensor]:
            given, cots, totals = flat[:arguments], flat[arguments:][:cotangents], flat[arguments + cotangents : rest]
            inputs = [x.detach().requires_grad_(w) for x, w in zip([*given, *flat[rest:]], wants, strict=True)]
            with torch.enable_grad():
                outputs = function(*inputs)
            found = [g for g, w in zip(replay.grads(outputs[:cotangents], inputs, cots), wants, strict=True) if w]
            before = [torch.zeros_like(given[i]) if g is None else g for i, g in zip(states, found, strict=False)]
            return [*before, *map(_sum, totals, found[len(states) :])]

        return pulled

    def _tolerant(self, rtol: Tensor, atol: Tensor) -> Any:
        solver = copy.copy(self.solver)
        object.__setattr__(solver, "rtol", rtol)
        object.__setattr__(solver, "atol", atol)
        return solver

    def _bound(self, z: Tensor, rest: Sequence[Tensor], call: Callable[[Any], Any]) -> Any:
        """A call with the leg reading other tensors: of the modules and of the context."""
        assert self._leg is not None
        count = len(self.tensors)
        leg = self._leg.with_conditions(rest[count:])
        leg.rows = z.shape[0]
        return functional_call(self._holder, dict(zip(self._names, rest[:count], strict=True)), (lambda: call(leg),))

    @cached_property
    def _holder(self) -> Holder:
        return Holder(self.modules)

    @cached_property
    def _names(self) -> list[str]:
        return self._holder.names()


@lru_cache(maxsize=256)
def _number(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device=device)


def _sum(total: Tensor, part: Tensor | None) -> Tensor:
    return total if part is None else total + part
