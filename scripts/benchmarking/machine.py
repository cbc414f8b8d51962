"""Where times are taken, and the environment that gives every system the same threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchdiffeq", "torchode", "jax", "diffrax")
BUSY = 0.3  # load a core above which times are not to be trusted


def environment(threads: int, device: str) -> dict[str, str]:
    """What must be set before torch and JAX are imported."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads)),  # NPROC: XLA's pools
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "",
        "KINETO_LOG_LEVEL": "99",  # of the profiler that sees allocations
    }


def facts(threads: int) -> dict[str, str]:
    """Processor, load and versions."""
    found = {"processor": processor(), "cores": str(os.cpu_count()), "threads": str(threads)}
    found |= {"load": f"{os.getloadavg()[0]:.2f}", "python": platform.python_version()}
    return found | {name: number for name in PACKAGES if (number := installed(name))}


def busy() -> bool:
    return os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)


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
