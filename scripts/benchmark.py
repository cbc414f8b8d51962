#!/usr/bin/env python
"""Time ndeflow, torchdiffeq, torchode and diffrax on the same problems, by turns, and print one table.

    python scripts/benchmark.py [case ...] [--systems NAME ...] [--threads N] [--device cpu|cuda] [--repeats N]

Without names: every case but `tiny`. All systems solve the same tanh MLP with the same weights by dopri5, float32,
rtol = atol = 1e-4, one step size for the batch, with the same number of threads. torchode and diffrax take part where
they are installed: pip install "ndeflow[benchmark]".

Columns. nfe: evaluations of the field forward, + those of the backward pass; a time is worth as much as they agree.
rows: evaluations of all rows, by the system's own statistics / as the field counted. min, median, iqr: of a call, ms.
first: seconds of the first call, compilation included. kept: MB between forward and backward. error, gradient:
largest error of the end state, relative error of the gradient, against dopri8 at 1e-8 in float64. limit: time over
that of the same number of evaluations of the bare compiled field. Then how often the other's time, by minima.

Compiled code goes to a new folder, unless TORCHINDUCTOR_CACHE_DIR names one: then a second call starts warm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking.cases import CASES, DEFAULT

if TYPE_CHECKING:
    from benchmarking.block import Block, Row

PACKAGES = ("torch", "torchdiffeq", "torchode", "jax", "diffrax")
BUSY = 0.3  # load a core above which times are not to be trusted
COLUMNS = ("system", "nfe", "rows", "min", "median", "iqr", "first", "kept", "error", "gradient", "limit")
AGAINST = ("torchdiffeq", "diffrax")


def environment(threads: int, device: str) -> dict[str, str]:
    """What must be set before torch and JAX are imported."""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")}
    single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if threads == 1 else {}
    return {**count, **single, "JAX_PLATFORMS": "cpu" if device == "cpu" else "", "KINETO_LOG_LEVEL": "5"}


def machine(threads: int, device: str) -> dict[str, Any]:
    """Where and with what these times were taken."""
    import torch

    facts: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "threads": threads}
    if device != "cpu":
        facts["device"] = torch.cuda.get_device_name(device)
    facts["load"] = round(os.getloadavg()[0], 2)
    facts["python"] = platform.python_version()
    return {**facts, **{name: found for name in PACKAGES if (found := version_of(name))}}


def processor() -> str:
    """The model's name, on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(block: Block) -> str:
    """The block as lines of aligned columns."""
    heads = [*COLUMNS, *(f"/ {name}" for name in AGAINST)]
    lines = [heads, *(cells(row, block) for row in block.rows)]
    if block.limit is not None:
        nfe = block.rows[0].cost.nfe
        its = block.limit.scaled(nfe)
        lines.append(["limit", str(nfe), "", *(ms(x) for x in (its.minimum, its.median, its.spread))])
    used = [i for i in range(len(heads)) if any(i < len(line) and line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines if i < len(line)) for i in used}
    text = [
        "  ".join((line[i] if i < len(line) else "").rjust(widths[i]) if i else line[0].ljust(widths[0]) for i in used)
        for line in lines
    ]
    absent = [f"not installed: {', '.join(block.absent)}"] if block.absent else []
    return "\n".join([str(block.case), *(line.rstrip() for line in text), *absent])


def cells(row: Row, block: Block) -> list[str]:
    times, cost = row.times, row.cost
    assert times is not None
    rows = "" if block.case.stiff is None else f"{cost.said or '-'} / {cost.counted or '-'}"
    limit = "" if block.limit is None else f"{times.minimum / (block.limit.minimum * cost.nfe):.2f}"
    return [
        row.system,
        f"{cost.nfe}+{cost.again}" if cost.again else str(cost.nfe),
        rows,
        *(ms(x) for x in (times.minimum, times.median, times.spread)),
        f"{row.first:.2f}",
        "" if row.kept is None else f"{row.kept / 1e6:.3g}",
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.gradient_error is None else f"{row.gradient_error:.1e}",
        limit,
        *(ratio(row, block.row(name)) for name in AGAINST),
    ]


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def ratio(row: Row, other: Row | None) -> str:
    """How many times as long the other takes."""
    if other is None or other.times is None or row.times is None:
        return ""
    return f"{other.times.minimum / row.times.minimum:.2f}x"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    known = list(dict.fromkeys(name for case in CASES.values() for name in case.systems))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--systems", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--threads", type=int, default=1, help="of every system (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each system, at most (30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times here")
    options = parser.parse_args(words)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"expected cases among {', '.join(CASES)}, got {', '.join(unknown)}")
    if options.threads < 1 or options.repeats < 2:
        parser.error("expected --threads of at least 1 and --repeats of at least 2")
    return options


def again_with(settings: Mapping[str, str]) -> None:
    """Start this command anew unless the environment is as given."""
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], list[Block]]:
    """Print each block as soon as it is there."""
    import torch

    from benchmarking.block import measure

    torch.set_num_threads(options.threads)
    facts, blocks = machine(options.threads, options.device), []
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    if facts["load"] > BUSY * (os.cpu_count() or 1):
        print("WARNING: other programs are running; times and their ratios are not to be trusted", flush=True)
    for name in options.cases or DEFAULT:
        blocks.append(measure(CASES[name], options.systems, torch.device(options.device), options.repeats))
        print(f"\n{table(blocks[-1])}", flush=True)
    return facts, blocks


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    again_with(environment(options.threads, options.device))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        facts, blocks = measured(options)
    if options.json:
        text = json.dumps({"machine": facts, "cases": [block.plain() for block in blocks]}, indent=1)
        options.json.write_text(text + "\n")
    if options.plot:
        from benchmarking.chart import draw

        draw(blocks, facts, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
