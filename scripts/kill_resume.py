#!/usr/bin/env python
"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with an undisturbed one.

    python scripts/kill_resume.py [--kills 20] [--recipe quickstart] [key=value ...]

A run that ends before all kills are done is followed by another. Exits 0 only if weights and metrics (times apart)
agree bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.table import TIME, read_table


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "ndeflow.train", *overrides]


def run_to_end(*overrides: str) -> float:
    """Seconds that the run took; raises CalledProcessError where it fails."""
    start = time.monotonic()
    subprocess.run(command(*overrides), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def run_and_kill(after: float, *overrides: str) -> bool:
    """True where the run was killed, False where it had ended by itself before."""
    process = subprocess.Popen(command(*overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, and the step at which it was written."""
    checkpoint = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
    return {**checkpoint["state_dict"], "global_step": torch.tensor(checkpoint["global_step"])}


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's table, less the columns that measure this machine rather than the run."""
    return [{k: v for k, v in row.items() if not k.startswith(TIME)} for row in read_table(folder / "metrics.csv")]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two run folders."""
    found = []
    for name in ("last", "best"):
        a, b = state(one, name), state(other, name)
        if name == "last" and a["global_step"] != b["global_step"]:
            continue  # it is written by the clock: where it was last written differs
        found += [f"{name}.ckpt: {k}" for k in a if not torch.equal(a[k], b[k])]
    if rows(one) != rows(other):
        found.append("metrics.csv")
    return found


def killed_run(folder: Path, start: list[str], seconds: float, most: int, rng: random.Random) -> int:
    """A run in `folder`, killed and resumed up to `most` times until it ends; how often it was killed."""
    kills = 0
    while True:
        begun = (folder / "config.yaml").exists()
        words = [f"resume={folder}"] if begun else [*start, f"run_dir={folder}"]
        if kills == most:
            run_to_end(*words)
            return kills
        if not run_and_kill(rng.uniform(0.08, 0.2) * seconds, *words):
            return kills
        kills += 1
        print(f"kill {kills}: {'resumed' if begun else 'started'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, start = Path(folder, "calm"), [f"recipe={options.recipe}", *options.overrides]
        seconds = run_to_end(*start, f"run_dir={calm}")
        print(f"undisturbed run: {seconds:.1f} s", flush=True)
        done = rounds = 0
        while done < options.kills:
            killed, rounds = Path(folder, f"killed{rounds}"), rounds + 1
            done += killed_run(killed, start, seconds, options.kills - done, rng)
            if found := differences(calm, killed):
                print("DIFFERENT: " + ", ".join(found), f"after {done} kills")
                return 1
            print(f"identical after {done} kills in {rounds} run{'s' * (rounds > 1)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
