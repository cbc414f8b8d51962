"""A solve through compiled programs: its start, its steps, and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import Halves, Program
from ndeflow.numerics.fingerprint import Attribute, Survey, noted
from ndeflow.numerics.form import MID, NOTHING, Form, number
from ndeflow.numerics.functions import Functions
from ndeflow.numerics.rewrites import rules
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import InitialValue

SAID = {
    "halves": "step and gradient",
    "begin": "first slope",
    "undo": "step back",
    "normals": "noise",
    "begin_product": "gradient of the first slope",
}  # where a name is not plain enough
ZEROS = 64  # that are kept from solve to solve: where rows step apart there are some for every number of them
VARIANTS = 2  # programs of one function, beside those for a single row: a field may branch by the number of rows

Totals = Sequence[Tensor]


def _said(head: tuple[int, ...]) -> str:
    """Of a product, by what it starts from."""
    if not head:
        return "gradient"
    return "gradient of the states inside steps" if head == (MID,) else "gradient of the estimates"


def _laid(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values as programs take them."""
    return [x.contiguous() for x in tensors]


@final
@dataclass
class Entry:
    """What is known of a field in one setting.

    columns: how many integrals it has. reached: which of the module tensors need gradients and get one. reads: collects
    the attributes that its programs have read. rows: the numbers of rows for which they are known to be these.
    programs: of each function, for one row or for more; None in a list: there are no more, the function itself is
    called. prepared: the passes whose programs were made ahead. refusal: why they cannot. zeros: of the shapes of the
    reached tensors.
    """

    columns: int
    reached: list[int]
    reads: set[Attribute]
    rows: set[int]
    programs: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    refusal: str | None = None
    zeros: list[Tensor] | None = None

    @classmethod
    def of(cls, form: Form, system: InitialValue, tensors: Sequence[Tensor], reads: set[Attribute]) -> Self:
        """Found by evaluating the field once; raises ValueError for rates of the wrong shape.

        Apart from all that the start, the context and the times were made from: that graph is another's to use, and
        none is in inference mode, though what is found is for training too.
        """
        with torch.inference_mode(False), torch.enable_grad():
            apart = system.with_conditions([x.detach().clone() for x in system.conditions()])
            apart.problem = replace(system.problem, y0=system.problem.y0.detach().clone())
            apart.segments = replace(system.segments, edges=system.segments.edges.detach().clone())
            rates = form.probe(apart)
            found = replay.grads(rates, tensors, [torch.ones_like(rate) for rate in rates])
        return cls(apart.columns, [i for i, g in enumerate(found) if g is not None], reads, {system.rows})


class Kept(NamedTuple):
    """What a step leaves for its product: the halves it was taken by, their first arguments, and what they keep.

    halves: None: there are none, the product is found by the function itself.
    """

    halves: Halves | None
    inputs: Sequence[Tensor]
    values: Sequence[Tensor]


@final
class Engine(Stepper):
    """The functions of one solve, each called through its program, which is made at the first call.

    All but the modules' tensors are made contiguous (`_laid`), as the programs expect: they do not look again. New
    values of any of them, tolerances included, need no new program.

    parameters: the tensors of the modules that need gradients, each once. keeping: steps keep what their products need;
    otherwise they are taken again for them. making: a context in which programs are made, given their name. One that
    cannot be made after others were is replaced by the function itself.
    """

    compiled: ClassVar[bool] = True

    def __init__(
        self,
        form: Form,
        system: InitialValue,
        entry: Entry,
        modules: list[nn.Module],
        now: Survey,
        ambient: replay.Ambient,
        keeping: bool,
        making: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.form, self.entry, self.modules = form, entry, modules
        self.originals, self.tensors, self.parameters = now.tensors, now.detached, now.trained
        self.untrained = now.untrained
        self.ambient, self.keeping, self.making = ambient, keeping, making
        self.constants = form.constants(system)
        self._needs = [x.requires_grad for x in system.example()]  # which leaves of a leg's context need gradients
        self._none: dict[torch.Size, Tensor] = {}
        self._begin()

    def anew(self, modules: list[nn.Module], making: Callable[[str], AbstractContextManager[None]]) -> Engine:
        """One for another solve, of modules that are what these are, in the same setting."""
        other = object.__new__(Engine)
        vars(other).update(vars(self))
        other.modules, other.making = modules, making
        other._begin()
        return other

    def _begin(self) -> None:
        """What belongs to one solve: the leg that it is on, and its leaves."""
        self._leg: InitialValue | None = None
        self._own: list[Tensor] = []
        self._flat: list[Tensor] = []

    def prepare(self, system: InitialValue, backward: bool) -> None:
        """Make the programs of a forward or a backward pass; the first of a field raise `Refusal`."""
        z, _ = self.open(system)
        apart = system.with_conditions(system.conditions())  # its evaluations are not the solve's
        for leg in list(apart.legs())[:1]:
            half = leg.start.new_full((leg.rows,), 0.5)
            t, h = leg.moment(half, half) if self.form.solver.apart else leg.moment(0.0, 0.5)
            carry, noise = self.form.first(self, leg, z)
            if backward:
                totals, kept = self.zeros(leg), self.take(leg, t, h, z, carry, noise)
                ends = [None] * (1 + self.form.carries)
                self.pull(leg, kept, ends, NOTHING, totals)
                if self.form.carries:
                    self.pull_begin(leg, t, z, replay.carried(carry), totals)
            else:
                self.step(leg, t, z, h, carry, noise)

    def open(self, system: Any) -> tuple[Tensor, Tensor | None]:
        system.columns = self.entry.columns
        return system.join(system.problem.y0.detach().contiguous(), None), None

    def start(self, leg: Any, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        if slope is not None:
            return slope, self.form.solver.start(leg, z, slope)
        moving = number(float(leg.moving), z.device)
        bounds = leg.start, leg.length
        if leg.segments.numbers is None:  # else they are on no graph
            bounds = [x.detach() for x in bounds]
        inputs = [*bounds, moving, z, *self.constants]
        found, dtheta = self._run("start", leg, inputs)
        leg.count(self.form.starting)
        return found, dtheta

    def begin(self, leg: Any, z: Tensor, slope: Tensor | None) -> Any:
        if slope is not None or not self.form.carries:
            return slope
        found = self._run("begin", leg, [leg.start.detach(), z])
        leg.count(1)
        return replay.packed(found)

    def step(self, leg: Any, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any = None) -> Step:
        inputs, kept = self._inputs(t, h, z, carry, noise), None
        if self.keeping:
            results, kept = self._front(leg, inputs)
        else:
            results = self._run("step", leg, inputs)
        leg.count(self.form.evaluations)
        return self.form.result(results, leg.dense, kept)

    def undo(self, leg: Any, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any) -> tuple[Tensor, Any]:
        leg.count(self.form.evaluations)
        before, *carry = self._run("undo", leg, self._inputs(t, h, z, carry, noise))
        return before, replay.packed(carry)

    def normals(
        self, leg: Any, word: Tensor, place: Tensor, low: Tensor, high: Tensor, index: Tensor
    ) -> Sequence[Tensor]:
        return self._run("normals", leg, [word, place, low, high, index])

    def take(self, leg: InitialValue, t: Tensor, h: Tensor, z: Tensor, carry: Any, noise: Any = None) -> Kept:
        """What a step keeps for its product, by taking it again."""
        leg.count(self.form.evaluations)
        return self._front(leg, self._inputs(t, h, z, carry, noise))[1]

    def pull(
        self,
        leg: InitialValue,
        kept: Kept,
        ends: Sequence[Tensor | None],
        inner: Sequence[Tensor | None],
        totals: Totals,
    ) -> tuple[Tensor, list[Tensor], Totals]:
        """One vector-Jacobian product of a step.

        ends: cotangents of y and of the tensors of the carry; inner: of what is inside the step, by its places; None:
        zero. Gives those of z and of the carry before the step, and `totals`, one for each of `wanted`, with their part
        added.
        """
        states, heads = self._states(kept.inputs), self.form.heads(leg.dense)
        asked = {place for place, c in enumerate(inner) if c is not None}
        head = next(n for n, places in enumerate(heads) if asked.issubset(places)) if asked else 0
        inputs = [*kept.inputs, *self._late(states, ends, inner, heads[head], heads[-1]), *totals]
        if kept.halves is None:
            found = self._functions(leg).step_product(head, *inputs)
        else:
            if not kept.halves.made(head):
                with self.making(_said(heads[head])), self.ambient():
                    kept.halves.make(head)
            found = kept.halves.rest(head, inputs, kept.values)
        return found[0], list(found[1 : len(states)]), found[len(states) :]

    def pull_begin(
        self, leg: InitialValue, t: Tensor, z: Tensor, cotangents: Sequence[Tensor], totals: Totals
    ) -> tuple[Tensor, Totals]:
        """The vector-Jacobian product of the carry begun at (t, z): that of z, and the totals."""
        before, *totals = self._run("begin_product", leg, [t, z], cotangents, totals)
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

    def gradients(self, totals: Totals) -> list[Tensor | None]:
        """Those of `parameters` among totals, in their order."""
        found = {id(self.originals[i]): g for i, g in zip(self.entry.reached, totals, strict=False)}
        return [found.get(id(p)) for p in self.parameters]

    @property
    def constant(self) -> list[Tensor]:
        """The module tensors without gradients that programs of steps read, as far as autograd can keep them."""
        if not self.untrained:
            return []
        made = [p for (name, _), ps in self.entry.programs.items() if name in ("step", "halves") for p in ps]
        read = {i - self.form.about for program in made if program is not None for i in program.used}
        return [x for i, x in self.untrained if i in read and not x.is_inference()]

    def _fixed(self, leg: InitialValue) -> list[Tensor]:
        """The modules' tensors and the leaves of a leg's context."""
        if leg is not self._leg:
            self._leg, self._own = leg, leg.conditions()
            self._flat = [*self.tensors, *_laid([x.detach() for x in self._own])]
        return self._flat

    def _inputs(self, t: Tensor, h: Tensor, z: Tensor, carry: Any, noise: Any) -> list[Tensor]:
        """What a step is about."""
        carry = carry if self.form.carries else None
        return [t, h, z, *replay.carried(carry), *replay.carried(noise), *self.constants]

    def _late(
        self,
        states: Sequence[Tensor],
        ends: Sequence[Tensor | None],
        inner: Sequence[Tensor | None],
        head: Sequence[int],
        inside: Sequence[int],
    ) -> list[Any]:
        """Cotangents of what a step gives, zeros for None; None for those inside it that `head` has not."""
        z = states[0]
        found: list[Any] = [self._given(c, x.shape, z) for c, x in zip(ends, states, strict=True)]
        if not head:
            return found + [None] * len(inside)
        shape = z.shape
        row, one = shape[:1], torch.Size()
        shapes = shape, row, one, row, one  # by places
        return found + [self._given(inner[i], shapes[i], z) if i in head else None for i in inside]

    def _states(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """z and the carry, of what a step is about."""
        return [inputs[i] for i in self.form.states]

    def _given(self, cotangent: Tensor | None, shape: torch.Size, like: Tensor) -> Tensor:
        """A cotangent as programs take it; for None zeros, always the same: they are never written to."""
        if cotangent is not None:
            return cotangent.contiguous()
        zeros = self._none.get(shape)
        if zeros is None:
            if len(self._none) == ZEROS:
                self._none.clear()
            zeros = self._none[shape] = like.new_zeros(shape)
        return zeros

    def _front(self, leg: InitialValue, inputs: list[Tensor]) -> tuple[Sequence[Tensor], Kept]:
        """What a step gives, and what it keeps."""
        inputs = _laid(inputs)
        flat = [*inputs, *self._fixed(leg)]
        halves = self._program("halves", leg.rows, flat, lambda: self._halves(leg, inputs))
        results, values = (self._functions(leg).step(*flat), ()) if halves is None else halves.front(flat)
        return results, Kept(halves, flat, values)

    def _run(
        self, name: str, leg: InitialValue, inputs: list[Tensor], cotangents: Sequence[Tensor] = (), totals: Totals = ()
    ) -> Any:
        inputs, cotangents = _laid(inputs), _laid(cotangents) if cotangents else ()
        flat = [*inputs, *self._fixed(leg), *cotangents, *totals]
        program = self._program(name, leg.rows, flat, lambda: self._made(name, leg, inputs, cotangents, totals))
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

    def _made(
        self, name: str, leg: InitialValue, inputs: list[Tensor], cotangents: Sequence[Tensor], totals: Totals
    ) -> Program:
        batched, how = self._batched(inputs, cotangents, totals), rules(backward=bool(totals))
        function = getattr(self._functions(leg), name)
        return Program(function, [*inputs, *self._flat, *cotangents, *totals], batched, how)

    def _halves(self, leg: InitialValue, inputs: list[Tensor]) -> Halves:
        """Of a step and its products; examples of what comes late are zeros."""
        outputs, early, totals = self.form.outputs(leg.dense), [*inputs, *self._flat], self.zeros(leg)
        states, heads = self._states(inputs), self.form.heads(leg.dense)
        late = self._late(states, [None] * len(states), NOTHING, heads[-1], heads[-1])
        batched = self._batched(inputs, late, totals)
        groups = [outputs, *[len(self.form.states) + len(totals)] * len(heads)]
        function = self._functions(leg).step_products
        how = rules(), rules(backward=True)
        return Halves(function, [*early, *late, *totals], batched, len(early), groups, how)

    def _batched(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor], totals: Totals) -> list[bool]:
        """Which arguments of a function have the batch first: numbers, and what belongs to the modules, have not."""
        modules, found = len(self.entry.reached), [x.dim() > 0 for x in inputs]
        found += [False] * len(self.tensors) + [True] * len(self._own) + [x.dim() > 0 for x in cotangents]
        return found + [i >= modules for i in range(len(totals))]

    def _functions(self, leg: InitialValue) -> Functions:
        return Functions(self.form, leg, self.modules, self.entry.reached, self._needs, len(self.tensors))
