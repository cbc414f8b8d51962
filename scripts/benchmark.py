#!/usr/bin/env python
"""Time ndeflow and its peers on the same problems, by turns, and print one table.

    python scripts/benchmark.py [case ...] [--systems NAME ...] [--threads N] [--device cpu|cuda] [--repeats N]

Without names: every case but `tiny`. All systems of a case have the same weights, float32, the same number of threads
and one step size for the batch (ndeflow-rows: one for each row). torchode, torchcde, JAX and diffrax take part where
they are installed: pip install "ndeflow[benchmark]".

ODEs: a tanh MLP by dopri5, rtol = atol = 1e-4, beside torchdiffeq, torchode and diffrax.
sde-*: steps of Euler-Maruyama, Milstein; a row's name says its adjoint, then its noise, which every call draws anew
       inside its time. philox: ndeflow's; interval: torchsde's BrownianInterval, told the steps, default: as torchsde
       makes it; randn: a loop written by hand; rbg: lax.scan, XLA's generator; tree: diffrax's VirtualBrownianTree.
cde-*: on a cubic with backward differences, rk4 from knot to knot or dopri5, rtol = atol = 1e-4, beside torchcde
       and diffrax (jumps: told the knots); a row's name says its adjoint. torchcde's rk4 is the 3/8 rule.

nfe           evaluations of the field forward, + again in the backward pass; times compare where they agree; torchsde
              and torchcde make one more, to look at shapes
rows          evaluations of all rows together: as the system says / as the field counts
min, median, iqr, cpu    of a call by the clock, and the least processor time on all cores
first         seconds of the first call, compilation included; cpu: of all cores, with the compilers that are started
used by others           of all cores, before the first case and after each, while this command sleeps
kept          MB held between the forward and the backward pass, the solution among them, weights not
error, gradient          largest error of the end state, relative one of the gradient; against float64 at 1e-8; of an
              SDE against float64 in the same steps with the same noise, of ndeflow alone
penalty       percent that one of weight 0 adds, at the median over the rounds, in each of which a machine keeps its
              pace, and to the fastest call: GlobalError (ndeflow-error), Stiffness, LocalError, biased and not (its
              fastest call is one at an accepted step, as where t* is late); in penalty-path Kinetic,
              JacobianFrobenius, TaylorDerivative, TrajectoryPolynomial
/ bare field  time over that of as many evaluations of the bare field, compiled by torch.compile
torchdiffeq / ...        how many times as long a peer takes by the clock (by processor time: less disturbed by others)

The case compile makes a step and its vector-Jacobian product in two processes: cold, then with the code of the first.
Bars: 40 and 6 s of processor time; 10 % for a penalty, of LocalError 1.4 accepted steps.
How many times as long the others take at least: sde-euler 2.4
(torchsde), 1.2 (scan); sde-euler-unit 30 (torchsde); sde-milstein 3, 1.5; sde-50000 1 (loop), and ndeflow no more than
12 times its sde-5000; cde-rk4 2 (torchcde), 1 (diffrax-checkpointed), 1 / 1.2 (diffrax-backsolve); cde-dopri5 5, 2, 1.

Compiled code goes to a new folder, unless TORCHINDUCTOR_CACHE_DIR names one: then a second command starts warm, but for
compile, whose folder is always new.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarking import machine
from benchmarking.apart import apart
from benchmarking.cases import CASES, DEFAULT

if TYPE_CHECKING:
    from benchmarking.block import Block


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
    if options.plot and all(CASES[name].processes for name in options.cases or DEFAULT):
        parser.error("expected with --plot a case of which later calls are timed, got compile alone")
    return options


def start_with(settings: Mapping[str, str]) -> None:
    """Start this command anew unless the environment is as given."""
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})


def measured(options: argparse.Namespace) -> list[Block]:
    """Measure each case in a process of its own, free of traces of the others; print its block when it is there."""
    from benchmarking.table import table

    blocks: list[Block] = []
    for name in options.cases or DEFAULT:
        found = in_turn(name, options) if CASES[name].processes else apart(block, name, options)
        blocks.append(replace(found, others=machine.others()))
        print(f"\n{table(blocks[-1])}", flush=True)
    return blocks


def in_turn(name: str, options: argparse.Namespace) -> Block:
    """Measure one case in each of its processes; their compiled code goes to one new folder."""
    from benchmarking.block import joined

    with tempfile.TemporaryDirectory() as folder:
        cache = {"TORCHINDUCTOR_CACHE_DIR": folder}
        return joined({process: apart(block, name, options, cache) for process in CASES[name].processes})


def block(name: str, options: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Block:
    """Measure one case."""
    os.environ.update(environment or {})
    import torch  # with the environment that `start_with` has made sure of

    from benchmarking.block import measure

    torch.set_num_threads(options.threads)
    return measure(CASES[name], options.systems, torch.device(options.device), options.repeats)


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    start_with(machine.environment(options.threads, options.device))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends what runs apart, as Ctrl-C does
    before = machine.others()
    facts = machine.facts(options.threads, before)
    print(machine.line(facts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        blocks = measured(options)
    if options.json:
        text = json.dumps({"machine": facts, "cases": [block.plain() for block in blocks]}, indent=1)
        options.json.write_text(text + "\n")
    if options.plot:
        from benchmarking.chart import times

        most = max(before, *(block.others for block in blocks))
        caption = machine.line(machine.facts(options.threads, most))
        drawn = [block for block in blocks if not block.case.processes]
        times(drawn, f"One call, ms, {options.device}", caption).savefig(options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
