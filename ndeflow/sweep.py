"""Sweeps: the product of all comma-separated values, each job a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ndeflow.resources import compose, expand


def run_all(words: Sequence[str]) -> int:
    """Run the jobs one after the other; 0 if all of them ended well, else the first other status."""
    jobs = expand(words)
    for job in jobs:
        compose(job)
    statuses = []
    for number, job in enumerate(jobs, 1):
        print(f"--- job {number} of {len(jobs)}: {' '.join(job)}", flush=True)
        statuses.append(subprocess.run([sys.executable, "-m", "ndeflow.train", *job]).returncode)
    ended = sum(status == 0 for status in statuses)
    print(f"--- {ended} of {len(jobs)} jobs ended well")
    return next((status for status in statuses if status), 0)
