"""A solve through compiled programs: its start, its steps, and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from ndeflow.numerics import replay
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.compiled import Code, Halves, Program
from ndeflow.numerics.entry import Entry
from ndeflow.numerics.fingerprint import Survey, noted
from ndeflow.numerics.form import MID, NOTHING, Form, Heads, number
from ndeflow.numerics.functions import Functions
from ndeflow.numerics.lowering import part
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
UNKNOWN = object()  # which program is right: nobody asked for so many rows before
VARIANTS = 2  # programs of one function, beside those for a single row: a field may branch by the number of rows

Totals = Sequence[Tensor]


def _said(head: tuple[int, ...]) -> str:
    """Of a product, by what it starts from."""
    if not head:
        return "gradient"
    return "gradient of the states inside steps" if head == (MID,) else "gradient of the estimates"


@cache
def _head(heads: Heads, asked: tuple[int, ...]) -> int:
    """The number of the first product that starts from all these places inside a step."""
    return next(n for n, places in enumerate(heads) if set(asked).issubset(places))


def _laid(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values as programs take them."""
    return [*map(Tensor.contiguous, tensors)]


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
        self.tensors, self.parameters = now.detached, now.trained
        self.untrained = now.untrained
        self.ambient, self.keeping, self.making = ambient, keeping, making
        self._states, self._split = slice(form.states.start, form.states.stop), len(form.states)
        self.constants = form.constants(system)
        reached = {id(now.tensors[i]): n for n, i in enumerate(entry.reached)}
        self._order = [reached.get(id(p)) for p in self.parameters]
        self._needs = [x.requires_grad for x in system.example()]  # which leaves of a leg's context need gradients
        self._none: dict[tuple[int, ...], Tensor] = {}
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
                self.pull(leg, kept, [None], NOTHING, totals)
                if self.form.carries:
                    self.pull_begin(leg, t, z, [z, *replay.carried(carry)], totals)
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
        found, dtheta = self._run("start", leg, [*_laid((*bounds, moving, z)), *self.constants])
        leg.count(self.form.starting)
        return found, dtheta

    def begin(self, leg: Any, z: Tensor, slope: Tensor | None) -> Any:
        if slope is not None or not self.form.carries:
            return slope
        found = self._run("begin", leg, _laid((leg.start.detach(), z)))
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
        return self._run("normals", leg, _laid((word, place, low, high, index)))

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
    ) -> tuple[list[Any], Totals]:
        """One vector-Jacobian product of a step.

        ends: cotangents of y and of the tensors of the carry, or of y alone; inner: of what is inside the step, by its
        places; None: zero. Gives those of z and of the carry before the step, and `totals`, as `zeros` gives them, with
        their part added.
        """
        inputs, halves, heads = kept.inputs, kept.halves, self.form.heads(leg.dense)
        head = 0 if inner is NOTHING else _head(heads, tuple([i for i, c in enumerate(inner) if c is not None]))
        late = self._late(inputs[self._states], ends, inner, heads[head], heads[-1])
        found: Any
        if halves is None:
            found = [*self._functions(leg).step_product(head, *inputs, *late, *totals)]
        else:
            rest = halves.rests.get(head) or self._rest(halves, head, heads)
            found = rest.run([*inputs, *late, *totals, *kept.values])
        return found[: self._split], found[self._split :]

    def _rest(self, halves: Halves, head: int, heads: Heads) -> Code:
        """The half of a step that is its product from a head, made now."""
        with self.making(_said(heads[head])), self.ambient():
            halves.make(head)
        return halves.rests[head]

    def pull_begin(
        self, leg: InitialValue, t: Tensor, z: Tensor, ends: Sequence[Tensor], totals: Totals
    ) -> tuple[Tensor, Totals]:
        """From cotangents of z and of the carry begun at (t, z) that of z alone, and the totals."""
        before, *totals = self._run("begin_product", leg, _laid((t, z)), _laid(ends), totals)
        leg.count(1)
        return before, totals

    def zeros(self, leg: InitialValue) -> list[Tensor]:
        """Totals to start from: of the modules' tensors that get gradients, in line, then of the segment's leaves.

        Those of the modules are never written to, and always the same.
        """
        if self.entry.zeros is None:
            reached = [self.tensors[i] for i in self.entry.reached]
            self.entry.zeros = self.entry.line.pack([x.new_zeros(x.shape) for x in reached])
        if not self._needs:
            return [*self.entry.zeros]
        self._fixed(leg)
        own = [x for x, needs in zip(self._own, self._needs, strict=True) if needs]
        return [*self.entry.zeros, *(x.new_zeros(x.shape) for x in own)]

    def gradients(self, totals: Totals) -> list[Tensor | None]:
        """Those of `parameters` among totals, in their order; totals: none where no step was taken."""
        if not totals:
            return [None] * len(self.parameters)
        found = self.entry.line.unpack(totals[: self.entry.line.count], part=part)
        return [None if n is None else found[n] for n in self._order]

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
        states = (t, h, z, *replay.carried(carry)) if self.form.carries else (t, h, z)
        about = states if noise is None else (*states, *replay.carried(noise))
        return [*_laid(about), *self.constants]

    def _late(
        self,
        states: Sequence[Tensor],
        ends: Sequence[Tensor | None],
        inner: Sequence[Tensor | None],
        head: Sequence[int],
        inside: Sequence[int],
    ) -> list[Any]:
        """Cotangents of what a step gives, zeros for None; None for those inside it that `head` has not."""
        pairs = zip_longest(ends, states)
        found: list[Any] = [self._nothing(x.shape, x) if c is None else c.contiguous() for c, x in pairs]
        if not head:
            return found + [None] * len(inside)
        z = states[0]
        shape, row, one = z.shape, z.shape[:1], torch.Size()
        shapes = shape, row, one, row, one  # by places
        for i in inside:
            c = inner[i]
            given = self._nothing(shapes[i], z) if c is None else c.contiguous()
            found.append(given if i in head else None)
        return found

    def _nothing(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Zeros, always the same: they are never written to."""
        zeros = self._none.get(shape)
        if zeros is None:
            if len(self._none) == ZEROS:
                self._none.clear()
            zeros = self._none[shape] = like.new_zeros(shape)
        return zeros

    def _front(self, leg: InitialValue, inputs: list[Tensor]) -> tuple[Sequence[Tensor], Kept]:
        """What a step gives, and what it keeps."""
        flat = [*inputs, *self._fixed(leg)]
        halves = self.entry.found.get(("halves", leg.rows), UNKNOWN)
        if halves is UNKNOWN:
            halves = self._program("halves", leg, flat, lambda: self._halves(leg, inputs))
        if halves is None:
            return self._functions(leg).step(*flat), Kept(None, flat, ())
        results, first = halves.front.run(flat), halves.first
        return results[:first], Kept(halves, flat, results[first:])

    def _run(
        self, name: str, leg: InitialValue, inputs: list[Tensor], cotangents: Sequence[Tensor] = (), totals: Totals = ()
    ) -> Any:
        """What a function gives, by its program if there is one; inputs and cotangents: laid."""
        flat = [*inputs, *self._fixed(leg), *cotangents, *totals]
        program = self.entry.found.get((name, leg.rows), UNKNOWN)
        if program is UNKNOWN:
            program = self._program(name, leg, flat, lambda: self._made(name, leg, inputs, cotangents, totals))
        return getattr(self._functions(leg), name)(*flat) if program is None else program.run(flat)

    def _program(self, name: str, leg: InitialValue, flat: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What was made of a function and fits, made now if there is room; None: call the function itself."""
        rows, entry = leg.rows, self.entry
        programs = entry.programs.setdefault((name, rows == 1), [])
        found = next((x for x in programs if x is None or x.fits(rows, flat)), UNKNOWN)
        if found is UNKNOWN:
            found = self._new(name, make) if len(programs) < VARIANTS else None
            programs.append(found)
        entry.found[name, rows] = found
        return found

    def _new(self, name: str, make: Callable[[], Any]) -> Any:
        """A program, or None where there are others and this one cannot be made."""
        try:
            with self.making(SAID.get(name, name)), self.ambient(), noted(self.entry.reads):
                return make()
        except Refusal:
            if not self.entry.prepared:
                raise
            return None

    def _made(
        self, name: str, leg: InitialValue, inputs: list[Tensor], cotangents: Sequence[Tensor], totals: Totals
    ) -> Program:
        batched, how = self._batched(inputs, cotangents, totals), rules(backward=bool(totals))
        function = getattr(self._functions(leg), name)
        return Program(function, [*inputs, *self._flat, *cotangents, *totals], batched, how)

    def _halves(self, leg: InitialValue, inputs: list[Tensor]) -> Halves:
        """Of a step and its products; examples of what comes late are zeros."""
        outputs, early, totals = self.form.outputs(leg.dense), [*inputs, *self._flat], self.zeros(leg)
        heads = self.form.heads(leg.dense)
        late = self._late(inputs[self._states], [None], NOTHING, heads[-1], heads[-1])
        batched = self._batched(inputs, late, totals)
        groups = [outputs, *[len(self.form.states) + len(totals)] * len(heads)]
        function = self._functions(leg).step_products
        how = rules(), rules(backward=True)
        return Halves(function, [*early, *late, *totals], batched, len(early), groups, how)

    def _batched(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor], totals: Totals) -> list[bool]:
        """Which arguments of a function have the batch first: numbers, and what belongs to the modules, have not."""
        modules, found = self.entry.line.count, [x.dim() > 0 for x in inputs]
        found += [False] * len(self.tensors) + [True] * len(self._own) + [x.dim() > 0 for x in cotangents]
        return found + [i >= modules for i in range(len(totals))]

    def _functions(self, leg: InitialValue) -> Functions:
        entry = self.entry
        return Functions(self.form, leg, self.modules, entry.reached, entry.line, self._needs, len(self.tensors))
