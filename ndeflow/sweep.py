"""Sweeps: the product of all comma-separated values, each job a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ndeflow import request
from ndeflow.resources import expand
from ndeflow.training.signals import Interrupted


def run_all(words: Sequence[str]) -> int:
    """Run the jobs one after the other; 0 if all of them ended well, else the first other status."""
    jobs = expand(words)
    for job in jobs:
        request.read(job)
    statuses = []
    for number, job in enumerate(jobs, 1):
        print(f"--- job {number} of {len(jobs)}: {' '.join(job)}", flush=True)
        statuses.append(run_one(job))
    print(f"--- {statuses.count(0)} of {len(jobs)} jobs ended well", flush=True)
    for job, status in zip(jobs, statuses, strict=True):
        if status:
            print(f"    exit status {status}: {' '.join(job)}", flush=True)
    return next((status for status in statuses if status), 0)


def run_one(job: Sequence[str]) -> int:
    """The exit status of one job. A signal is passed on to it, once; once it has saved and ended, Interrupted rises."""
    process = subprocess.Popen([sys.executable, "-m", "ndeflow.train", *job], start_new_session=True)
    stopped: Interrupted | None = None
    while True:
        try:
            status = process.wait()
            break
        except Interrupted as stop:
            stopped = stop
            process.send_signal(stop.signum)
    if stopped is not None:
        raise stopped
    return status if status >= 0 else 128 - status
