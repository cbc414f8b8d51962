"""Where times are taken, and the environment that gives every system the same threads."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchdiffeq", "torchode", "torchsde", "torchcde", "jax", "diffrax")
BUSY = 0.2  # of all cores, used by others: above it times are not to be trusted
WINDOW = 0.5  # seconds in which that is measured
TICKS = Path("/proc/stat")


def environment(threads: int, device: str) -> dict[str, str]:
    """What must be set before torch and JAX are imported."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads)),  # NPROC: XLA's pools
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "",
        "KINETO_LOG_LEVEL": "99",  # of the profiler that sees allocations
    }


def facts(threads: int, others: float) -> dict[str, str]:
    """Processor, what others use of it, and versions."""
    found = {"processor": processor(), "cores": str(os.cpu_count()), "threads": str(threads)}
    found |= {"used by others": percent(others), "python": platform.python_version()}
    return found | {name: number for name in PACKAGES if (number := installed(name))}


def line(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def others() -> float:
    """What others use of all cores, from 0 to 1, while this process sleeps and has nothing else to do.

    Where the system does not count that: the load average a core, in which the last minute of this process is too.
    """
    if not TICKS.exists():
        return min(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    before = _ticks(TICKS.read_text())
    time.sleep(WINDOW)
    busy, idle = (now - then for now, then in zip(_ticks(TICKS.read_text()), before, strict=True))
    return busy / max(busy + idle, 1)


def _ticks(text: str) -> tuple[int, int]:
    """Of all cores since the start, busy (stolen by other guests too) and idle; proc(5)."""
    user, nice, system, idle, waiting, *rest = (int(number) for number in text.split()[1:9])
    return user + nice + system + sum(rest), idle + waiting


def percent(others: float) -> str:
    return f"{others:.0%}" + (" (WARNING: times and their ratios are not to be trusted)" if others > BUSY else "")


def processor() -> str:
    """The model's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
