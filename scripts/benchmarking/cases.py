"""What is solved, and by which systems: one case a block of the table. Imports nothing that counts threads."""

from __future__ import annotations

from dataclasses import dataclass

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
PLAIN = {  # a system without the penalty, of each that has one
    "ndeflow-error": "ndeflow",
    "ndeflow-stiffness": "ndeflow",
    "ndeflow-eager-error": "ndeflow-eager",
    "ndeflow-eager-stiffness": "ndeflow-eager",
}
PENALTY = (*dict.fromkeys(PLAIN.values()), *PLAIN)
TINY = ("ndeflow-eager", "ndeflow-eager-checkpointed", "torchdiffeq")

COMPILING = "first call 40 s of processor time cold, 6 cached"
WEIGHTLESS = "10 % for a penalty of weight 0"


@dataclass(frozen=True)
class Case:
    """dy/dt = MLP(y) of `dim`-`width`-`width`-`dim`, `batch` rows on [0, 1], read at `saves` times.

    train: loss and backward pass too. stiff: the last row's rate is this many times the others'. steps: the horizon
    is instead one that takes about so many steps, and there is no reference. repeats: at most so many, for long calls.
    processes: names of processes that measure it one after the other, each with the compiled code of those before it;
    none is there at first. Without names: in one process, with the compiled code of all cases. bar: what is aimed at.
    """

    name: str
    systems: tuple[str, ...]
    dim: int = 2
    width: int = 64
    batch: int = 32
    saves: int = 2
    train: bool = True
    stiff: float | None = None
    steps: int | None = None
    repeats: int = 1_000
    processes: tuple[str, ...] = ()
    bar: str = ""

    def __str__(self) -> str:
        parts = [f"dim {self.dim}", f"width {self.width}", f"batch {self.batch}", f"{self.saves} save points"]
        parts.append("forward, loss, backward" if self.train else "forward only")
        parts += [f"one row {self.stiff:g} times as fast"] if self.stiff else []
        parts += [f"about {self.steps} steps"] if self.steps else []
        return f"{self.name}: {', '.join(parts)}" + (f"; bar: {self.bar}" if self.bar else "")


CASES = {
    case.name: case
    for case in (
        Case("train-1", TRAIN, batch=1),
        Case("train-32", TRAIN),
        Case("train-32-dense", TRAIN, saves=50),
        Case("train-512", TRAIN, batch=512),
        Case("train-wide", TRAIN, dim=64, width=256, batch=512, repeats=10),
        Case("forward-32", FORWARD, train=False),
        Case("eager-32", EAGER),
        Case("stiff-32", STIFF, stiff=500.0, train=False, repeats=5),
        Case("memory-1000", MEMORY, batch=512, steps=1_000, repeats=2),
        Case("compile", ("ndeflow",), repeats=2, processes=("compile, cold", "compile, cached"), bar=COMPILING),
        Case("penalty-32", PENALTY, bar=WEIGHTLESS),
        Case("penalty-512", PENALTY, batch=512, bar=WEIGHTLESS),
        Case("tiny", TINY, width=4, batch=2),
    )
}
DEFAULT = tuple(name for name in CASES if name != "tiny")
