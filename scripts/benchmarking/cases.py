"""What is solved, and by which systems: one case a block of the table. Imports nothing that counts threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarking.system import Suite

TRAIN = (
    "ndeflow",
    "ndeflow-checkpointed",
    "ndeflow-eager",
    "torchdiffeq",
    "torchdiffeq-adjoint",
    "torchode",
    "diffrax",
    "bare-field",
)
FORWARD = ("ndeflow", "ndeflow-eager", "torchdiffeq", "torchode", "diffrax", "bare-field")
EAGER = ("ndeflow-eager", "ndeflow-eager-checkpointed", "torchdiffeq", "torchdiffeq-adjoint", "torchode")
STIFF = ("ndeflow", "ndeflow-rows", "ndeflow-eager", "ndeflow-eager-rows", "ndeflow-eager-separate")
MEMORY = ("ndeflow-checkpointed", "ndeflow-eager-checkpointed", "ndeflow-eager")
STEPS = ("error", "stiffness", "local", "local-biased")  # penalties of what the solver's steps say
PATHS = ("kinetic", "jacobian", "taylor", "polynomial")  # of the solution
PLAIN = {  # a system without the penalty, of each that has one
    f"{plain}-{penalty}": plain for plain in ("ndeflow", "ndeflow-eager") for penalty in (*STEPS, *PATHS)
}


def penalised(penalties: Sequence[str]) -> tuple[str, ...]:
    """The systems with these penalties, and before them those without one."""
    return (*dict.fromkeys(PLAIN.values()), *(name for name in PLAIN if name.endswith(tuple(penalties))))


TINY = ("ndeflow-eager", "ndeflow-eager-checkpointed", "torchdiffeq")

STEPPED = (
    "ndeflow-direct-philox",
    "ndeflow-checkpointed-philox",
    "ndeflow-eager-direct-philox",
    "torchsde-autograd-interval",
    "loop-autograd-randn",
    "jax-scan-rbg",
    "diffrax-checkpointed-tree",
)
MILSTEIN = STEPPED[:-1]  # diffrax's own takes the derivative of every row by all rows: 276 GB at batch 256
UNIT = ("ndeflow-direct-philox", "ndeflow-checkpointed-philox", "torchsde-autograd-default", "loop-autograd-randn")
LONG = ("ndeflow-checkpointed-philox", "loop-autograd-randn")
ALONG = (
    "ndeflow-direct",
    "ndeflow-checkpointed",
    "ndeflow-eager-direct",
    "torchcde-autograd",
    "torchcde-autograd-jumps",
    "diffrax-checkpointed",
    "diffrax-checkpointed-jumps",
    "diffrax-backsolve",
    "diffrax-backsolve-jumps",
)
KNOTS = tuple(name for name in ALONG if not name.endswith("-jumps"))  # where every step ends on one

COMPILING = "first call 40 s of processor time cold, 6 cached"
WEIGHTLESS = "a penalty of weight 0: error and stiffness 10 %, local 1.4 accepted steps"


@dataclass(frozen=True)
class Case(ABC):
    """What all cases have.

    peers: systems, each with a column that compares. train: loss and backward pass too. repeats: at most so many, for
    long calls. processes: names of processes that measure it one after the other, each with the compiled code of those
    before it; none is there at first. Without names: in one process, with the compiled code of all cases. bar: what is
    aimed at.
    """

    name: str
    systems: tuple[str, ...]
    peers: tuple[str, ...] = ()
    batch: int = 32
    train: bool = True
    repeats: int = 1_000
    processes: tuple[str, ...] = ()
    bar: str = ""

    @property
    @abstractmethod
    def parts(self) -> list[str]:
        """What is solved, in words."""

    @abstractmethod
    def suite(self) -> Suite[Any]:
        """Its problem and its systems."""

    @property
    def rowwise(self) -> bool:
        """Whether rows take different numbers of evaluations."""
        return False

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.parts)}" + (f"; bar: {self.bar}" if self.bar else "")

    @property
    def passes(self) -> str:
        return "forward, loss, backward" if self.train else "forward only"


@dataclass(frozen=True)
class ODE(Case):
    """dy/dt = MLP(y) of `dim`-`width`-`width`-`dim`, `batch` rows on [0, 1], read at `saves` times.

    stiff: the last row's rate is this many times the others'. steps: the horizon is instead one that takes about so
    many steps, and there is no reference.
    """

    peers: tuple[str, ...] = ("torchdiffeq", "diffrax")
    dim: int = 2
    width: int = 64
    saves: int = 2
    stiff: float | None = None
    steps: int | None = None

    @property
    def parts(self) -> list[str]:
        parts = [f"dim {self.dim}", f"width {self.width}", f"batch {self.batch}", f"{self.saves} save points"]
        parts += [self.passes]
        parts += [f"one row {self.stiff:g} times as fast"] if self.stiff else []
        return parts + ([f"about {self.steps} steps"] if self.steps else [])

    @property
    def rowwise(self) -> bool:
        return bool(self.stiff)

    def suite(self) -> Suite[Any]:
        from benchmarking.ode.suite import SUITE

        return SUITE


@dataclass(frozen=True)
class SDE(Case):
    """dy = MLP(y) dt + sigmoid(MLP(y)) dW, Itô's, diagonal noise, on [0, `end`] in `steps` steps of `method`.

    Both MLPs are of `dim`-`width`-`dim`; `batch` rows. Every call draws its noise anew, inside the time.
    """

    method: str = "euler"
    steps: int = 100
    end: float = 10.0
    dim: int = 16
    width: int = 64

    @property
    def parts(self) -> list[str]:
        steps = f"{self.steps} {self.method} steps on [0, {self.end:g}]"
        return [steps, f"dim {self.dim}", f"width {self.width}", f"batch {self.batch}", "diagonal noise", self.passes]

    def suite(self) -> Suite[Any]:
        from benchmarking.sde.suite import SUITE

        return SUITE


@dataclass(frozen=True)
class CDE(Case):
    """dy = tanh(MLP(y)) dX with the MLP of `hidden`-`hidden`-(`hidden` `channels`), `batch` rows.

    X is the cubic with backward differences through `length` knots at 0, 1, ...; solved by `method`: rk4 with a step
    from each knot to the next, or dopri5.
    """

    method: str = "rk4"
    length: int = 100
    channels: int = 8
    hidden: int = 32

    @property
    def parts(self) -> list[str]:
        path = [f"{self.length} knots", f"{self.channels} channels", f"hidden {self.hidden}", f"batch {self.batch}"]
        return [self.method, *path, self.passes]

    def suite(self) -> Suite[Any]:
        from benchmarking.cde.suite import SUITE

        return SUITE


CASES = {
    case.name: case
    for case in (
        ODE("train-1", TRAIN, batch=1),
        ODE("train-32", TRAIN),
        ODE("train-32-dense", TRAIN, saves=50),
        ODE("train-512", TRAIN, batch=512),
        ODE("train-wide", TRAIN, dim=64, width=256, batch=512, repeats=10),
        ODE("forward-32", FORWARD, train=False),
        ODE("eager-32", EAGER),
        ODE("stiff-32", STIFF, stiff=500.0, train=False, repeats=5),
        ODE("memory-1000", MEMORY, batch=512, steps=1_000, repeats=2),
        ODE("compile", ("ndeflow",), repeats=2, processes=("compile, cold", "compile, cached"), bar=COMPILING),
        ODE("penalty-32", penalised(STEPS), bar=WEIGHTLESS),
        ODE("penalty-512", penalised(STEPS), batch=512, bar=WEIGHTLESS),
        ODE("penalty-path", penalised(PATHS)),
        SDE(
            "sde-euler",
            STEPPED,
            ("torchsde-autograd-interval", "jax-scan-rbg"),
            batch=256,
            bar="torchsde 2.4 times as long, JAX's scan 1.2",
        ),
        SDE(
            "sde-euler-unit",
            UNIT,
            ("torchsde-autograd-default",),
            batch=256,
            end=1.0,
            repeats=5,
            bar="torchsde 30 times as long",
        ),
        SDE(
            "sde-milstein",
            MILSTEIN,
            ("torchsde-autograd-interval", "jax-scan-rbg"),
            batch=256,
            method="milstein",
            bar="torchsde 3 times as long, JAX's scan 1.5",
        ),
        SDE("sde-5000", LONG, ("loop-autograd-randn",), dim=2, steps=5_000, repeats=3),
        SDE(
            "sde-50000",
            LONG,
            ("loop-autograd-randn",),
            dim=2,
            steps=50_000,
            repeats=2,
            bar="the loop no faster; at most 12 times sde-5000",
        ),
        CDE(
            "cde-rk4",
            KNOTS,
            ("torchcde-autograd", "diffrax-checkpointed", "diffrax-backsolve"),
            batch=64,
            bar="torchcde 2 times as long, diffrax checkpointed 1, Backsolve 1 / 1.2",
        ),
        CDE(
            "cde-dopri5",
            ALONG,
            tuple(name for name in ALONG if not name.startswith("ndeflow")),
            batch=64,
            method="dopri5",
            bar="torchcde 5 times as long, diffrax checkpointed 2, Backsolve 1",
        ),
        ODE("tiny", TINY, width=4, batch=2),
    )
}
DEFAULT = tuple(name for name in CASES if name != "tiny")
