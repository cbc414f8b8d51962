"""A Runge-Kutta solve through compiled programs: its start, its steps, and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import Halves, Program
from ndeflow.numerics.fingerprint import Attribute, Survey, noted
from ndeflow.numerics.functions import Functions
from ndeflow.numerics.rewrites import FORWARD, FUNCTIONS
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import InitialValue

SAID = {"halves": "step and gradient", "slope_product": "gradient of a slope"}  # where a name is not plain enough
VARIANTS = 2  # programs of one function, beside those for a single row: a field may branch on shapes once

Totals = Sequence[Tensor]


@final
@dataclass
class Entry:
    """What is known of a field in one setting.

    columns: how many integrals it has. reached: which of the module tensors need gradients and get one. reads: collects
    the attributes that its programs have read. programs: of each function, for one row or for more; None in a list:
    there are no more, the function itself is called. prepared: the passes whose programs were made ahead. refusal: why
    they cannot. zeros: of the shapes of the reached tensors.
    """

    columns: int
    reached: list[int]
    reads: set[Attribute]
    programs: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    refusal: str | None = None
    zeros: list[Tensor] | None = None

    @classmethod
    def of(cls, system: InitialValue, tensors: Sequence[Tensor], reads: set[Attribute]) -> Self:
        """Found by evaluating the field once; raises ValueError for rates of the wrong shape."""
        apart = system.with_conditions(system.conditions())
        with torch.enable_grad():
            _, slope = apart.open()
        found = replay.grads([slope], tensors, [torch.ones_like(slope)])
        return cls(apart.columns, [i for i, g in enumerate(found) if g is not None], reads)


@final
@dataclass(frozen=True)
class Kept:
    """What a step leaves for its product: the halves it was taken by, their first arguments, and what they keep.

    halves: None: there are none, the product is found by the function itself.
    """

    halves: Halves | None
    inputs: Sequence[Tensor]
    values: Sequence[Tensor]


@final
class Engine(Stepper):
    """The functions of one solve, each called through its program, which is made at the first call.

    All but the modules' tensors are contiguous, as the programs expect. New values of any of them, tolerances
    included, need no new program.

    parameters: the tensors of the modules that need gradients, each once. keeping: steps keep what their products need;
    otherwise they are taken again for them. making: a context in which programs are made, given their name. One that
    cannot be made after others were is replaced by the function itself.
    """

    compiled: ClassVar[bool] = True

    def __init__(
        self,
        solver: Any,
        system: InitialValue,
        entry: Entry,
        modules: list[nn.Module],
        now: Survey,
        keeping: bool,
        making: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.solver, self.system, self.entry, self.modules = solver, system, entry, modules
        self.originals, self.tensors, self.parameters = now.tensors, now.detached, now.trained
        self.keeping, self.making = keeping, making
        y0 = system.problem.y0
        self.tolerances = [_number(x, y0.device) for x in (solver.rtol, solver.atol)]
        self.stages = len(solver.tableau.c) - 1
        self.ambient = replay.Ambient.of(y0)
        self._leg: InitialValue | None = None
        self._none: dict[torch.Size, Tensor] = {}

    def prepare(self, backward: bool) -> None:
        """Make the programs of a forward or a backward pass; the first of a field raise `Refusal`."""
        z, _ = self.open()
        apart = self.system.with_conditions(self.system.conditions())  # its evaluations are not the solve's
        for leg in list(apart.legs())[:1]:
            half = leg.start.new_full((leg.rows,), 0.5)
            t, h = leg.moment(half, half) if self.solver.apart else leg.moment(0.0, 0.5)
            if backward:
                totals = self.zeros(leg)
                self.pull(leg, self.take(leg, t, h, z, z), (None,) * 5, totals)
                self.pull_slope(leg, t, z, z, totals)
            else:
                slope, _ = self.start(leg, z, None)
                self.step(leg, t, z, h, slope)

    def open(self) -> tuple[Tensor, Tensor | None]:
        self.system.columns = self.entry.columns
        return self.system.join(self.system.problem.y0.detach().contiguous(), None), None

    def start(self, leg: Any, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        if slope is not None:
            return slope, self.solver.start(leg, z, slope)
        moving = _number(float(leg.moving), z.device)
        inputs = [leg.start.detach(), leg.length.detach(), moving, z, *self.tolerances]
        found, dtheta = self._run("start", leg, inputs)
        leg.count(2)
        return found, dtheta

    def slope(self, leg: Any, z: Tensor) -> Tensor:
        (found,) = self._run("slope", leg, [leg.start.detach(), z])
        leg.count(1)
        return found

    def step(self, leg: Any, t: Tensor, z: Tensor, h: Tensor, carry: Any) -> Step:
        inputs = [t, h, z, carry, *self.tolerances]
        if self.keeping:
            (y, carry, ratio, *rest), kept = self._front(leg, inputs)
        else:
            (y, carry, ratio, *rest), kept = self._run("step", leg, inputs), None
        leg.count(self.stages)
        mid = rest.pop() if leg.dense else None
        return Step(y, None, ratio, rest.pop() if rest else None, mid, carry, kept)

    def take(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, carry: Tensor) -> Kept:
        """What a step keeps for its product, by taking it again."""
        leg.count(self.stages)
        return self._front(leg, [t, h, z, carry, *self.tolerances])[1]

    def pull(
        self, leg: InitialValue, kept: Kept, cotangents: Sequence[Tensor | None], totals: Totals
    ) -> tuple[Tensor, Tensor, Totals]:
        """One vector-Jacobian product of a step.

        cotangents: of y, carry, ratio, stiffness and mid; None: zero. Gives those of z and carry before the step, and
        `totals`, one for each of `wanted`, with their part added.
        """
        ratio, stiffness, mid = cotangents[2:]
        group = int(ratio is not None or stiffness is not None or mid is not None)
        inputs = [*kept.inputs, *self._late(leg, kept.inputs[2], cotangents, totals)]
        if kept.halves is None:
            found = self._functions(leg).step_products(*inputs)[self._outputs(leg) + group * (2 + len(totals)) :]
        else:
            if not kept.halves.made(group):
                with self.making("gradient of the estimates" if group else "gradient"), self.ambient():
                    kept.halves.make(group)
            found = kept.halves.rest(group, inputs, kept.values)
        return found[0], found[1], found[2 : 2 + len(totals)]

    def pull_slope(
        self, leg: InitialValue, t: Tensor, z: Tensor, cotangent: Tensor, totals: Totals
    ) -> tuple[Tensor, Totals]:
        """The vector-Jacobian product of dz/dt at (t, z): that of z, and the totals."""
        before, *totals = self._run("slope_product", leg, [t, z], [cotangent.contiguous(), *totals])
        leg.count(1)
        return before, totals

    def wanted(self, leg: InitialValue) -> list[Tensor]:
        """The tensors that get gradients, in the order of the totals: module tensors, then the segment's leaves."""
        self._fixed(leg)
        found = [self.tensors[i] for i in self.entry.reached]
        if self._own:
            found += [x for x, needs in zip(self._own, self._needs, strict=True) if needs]
        return found

    def zeros(self, leg: InitialValue) -> list[Tensor]:
        """Totals to start from; those of the modules are never written to, and always the same."""
        wanted = self.wanted(leg)
        if self.entry.zeros is None:
            self.entry.zeros = [x.new_zeros(x.shape) for x in wanted[: len(self.entry.reached)]]
        return [*self.entry.zeros, *(x.new_zeros(x.shape) for x in wanted[len(self.entry.reached) :])]

    @cached_property
    def _needs(self) -> list[bool]:
        """Which leaves of a leg's context need gradients; where nothing is recorded, those of a piece do not say so."""
        with torch.enable_grad():
            return [x.requires_grad for x in self.system.at(self.system.segments.first).conditions()]

    def _fixed(self, leg: InitialValue) -> list[Tensor]:
        """The modules' tensors and the leaves of a leg's context."""
        if leg is not self._leg:
            self._leg, self._own = leg, leg.conditions()
            self._flat = [*self.tensors, *(x.detach().contiguous() for x in self._own)]
        return self._flat

    def _outputs(self, leg: InitialValue) -> int:
        """How many tensors a step gives."""
        return 3 + self.solver.tableau.stiffness + leg.dense

    def _late(self, leg: InitialValue, z: Tensor, cotangents: Sequence[Tensor | None], totals: Totals) -> list[Any]:
        """Cotangents of what a step gives, zeros for None, and totals; None for those that no one gave."""
        ends, (ratio, stiffness, mid) = cotangents[:2], cotangents[2:]
        found: list[Any] = [self._given(c, z.shape) for c in ends]
        if ratio is None and stiffness is None and mid is None:
            return [*found, *[None] * (self._outputs(leg) - 2), *totals]
        found.append(self._given(ratio, z.shape[:1]))
        if self.solver.tableau.stiffness:
            found.append(self._given(stiffness, z.shape[:1]))
        if leg.dense:
            found.append(self._given(mid, z.shape))
        return [*found, *totals]

    def _given(self, cotangent: Tensor | None, shape: torch.Size) -> Tensor:
        """A cotangent as programs take it; for None zeros, always the same: they are never written to."""
        if cotangent is not None:
            return cotangent.contiguous()
        if shape not in self._none:
            self._none[shape] = self.system.problem.y0.new_zeros(shape)
        return self._none[shape]

    def _front(self, leg: InitialValue, inputs: list[Tensor]) -> tuple[Sequence[Tensor], Kept]:
        """What a step gives, and what it keeps."""
        flat = [*inputs, *self._fixed(leg)]
        halves = self._program("halves", leg.rows, flat, lambda: self._halves(leg, inputs))
        results, values = (self._functions(leg).step(*flat), ()) if halves is None else halves.front(flat)
        return results, Kept(halves, flat, values)

    def _run(self, name: str, leg: InitialValue, inputs: list[Tensor], late: Sequence[Tensor] = ()) -> Any:
        flat = [*inputs, *self._fixed(leg), *late]
        program = self._program(name, leg.rows, flat, lambda: self._made(name, leg, inputs, late))
        return getattr(self._functions(leg), name)(*flat) if program is None else program(flat)

    def _program(self, name: str, rows: int, flat: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What was made of a function and fits, made now if there is room; None: call the function itself."""
        programs = self.entry.programs.setdefault((name, rows == 1), [])
        for program in programs:
            if program is None or program.fits(rows, flat):
                return program
        made = None
        if len(programs) < VARIANTS:
            try:
                with self.making(SAID.get(name, name)), self.ambient(), noted(self.entry.reads):
                    made = make()
            except Refusal:
                if not self.entry.prepared:
                    raise
        programs.append(made)
        return made

    def _made(self, name: str, leg: InitialValue, inputs: list[Tensor], late: Sequence[Tensor]) -> Program:
        cotangents, rules = (1, FUNCTIONS) if late else (0, FORWARD)
        batched = self._batched(inputs, late[:cotangents], late[cotangents:])
        return Program(getattr(self._functions(leg), name), [*inputs, *self._flat, *late], batched, rules)

    def _halves(self, leg: InitialValue, inputs: list[Tensor]) -> Halves:
        """Of a step and its products; examples of what comes late are zeros."""
        totals, rows = self.zeros(leg), inputs[2].new_zeros(leg.rows)
        late = self._late(leg, inputs[2], (None, None, rows, None, None), totals)
        outputs, early = self._outputs(leg), [*inputs, *self._flat]
        batched = self._batched(inputs, late[:outputs], totals)
        groups, function = [outputs, *[2 + len(totals)] * 2], self._functions(leg).step_products
        return Halves(function, [*early, *late], batched, len(early), groups, (FORWARD, FUNCTIONS))

    def _batched(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor], totals: Totals) -> list[bool]:
        """Which arguments of a function have the batch first: numbers, and what belongs to the modules, have not."""
        modules, found = len(self.entry.reached), [x.dim() > 0 for x in inputs]
        found += [False] * len(self.tensors) + [True] * (len(self._own) + len(cotangents))
        return found + [i >= modules for i in range(len(totals))]

    def _functions(self, leg: InitialValue) -> Functions:
        return Functions(self.solver, leg, self.modules, self.entry.reached, self._needs, len(self.tensors))


@lru_cache(maxsize=256)
def _number(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device=device)
