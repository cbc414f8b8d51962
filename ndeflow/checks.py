"""What a configuration must not ask for, and what data a run must not go on with: refused before it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ndeflow import resources
from ndeflow.contracts import DataSpec
from ndeflow.resources import ConfigError
from ndeflow.training.assembly import trainer_options

HIGHER = ("val/accuracy", "val/log_likelihood")
"""Metrics that are the better the larger they are."""


def check_trainer(config: Any) -> None:
    """Refuse options that no Trainer has; raises ConfigError with the near matches."""
    known = {f"trainer.{name}" for name in (*trainer_options(), "threads")}
    for name in config.trainer:
        if f"trainer.{name}" not in known:
            raise ConfigError(f"no option 'trainer.{name}'{resources.near(f'trainer.{name}', known)}")


def check_monitor(config: Any) -> None:
    """Refuse to look at what is no metric of validation, or to keep the worst weights; raises ConfigError."""
    monitor, mode = str(config.monitor), config.monitor_mode
    if mode not in ("min", "max"):
        raise ConfigError(f"expected monitor_mode to be min or max, got {mode}")
    if not monitor.startswith("val/"):
        raise ConfigError(f"expected monitor to be a metric of validation, such as val/loss, got {monitor}")
    if monitor in HIGHER and mode == "min":
        raise ConfigError(f"expected monitor_mode=max for {monitor}, which is better when larger, got min")


def check_same(known: DataSpec, spec: DataSpec, folder: Path) -> None:
    """Refuse to go on with other data than a run began with; raises ConfigError with what differs.

    Numbers may differ by what a machine rounds.
    """
    now = spec.to_dict()
    other = [name for name, before in known.to_dict().items() if not _near(before, now[name])]
    if other:
        raise ConfigError(
            f"expected the data that the run began with, got others (of another {', '.join(other)}); bring those back, "
            f"or begin a new run from its weights: init_from={folder}"
        )


def _near(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b
