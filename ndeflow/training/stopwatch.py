"""How long a training step takes, and what share of it is training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, final

from torch.optim import Optimizer


@final
class Stopwatch:
    """Wall seconds a step, pauses excluded, and those inside optimizer steps, closure included.

    Lightning runs forward and backward pass as the closure of the optimizer step: hooks of the optimizer see both.
    """

    def __init__(self) -> None:
        self.steps = self.total_steps = 0
        self.total_seconds = self.total_inside = 0.0
        self._seconds = self._inside = self._began = 0.0
        self._mark = time.perf_counter()

    def start(self, optimizers: Iterable[Optimizer]) -> None:
        """Begin; time inside the steps of `optimizers` is what counts as training."""
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._enter)
            optimizer.register_step_post_hook(self._leave)
        self._mark = time.perf_counter()

    def step(self) -> None:
        """One more step is done."""
        self.steps += 1
        self.pause()

    def pause(self) -> None:
        """Count the time until now."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def resume(self) -> None:
        """Forget the time since the last pause."""
        self._mark = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Seconds inside the step in work that are not to count."""
        self._seconds -= seconds
        self._inside -= seconds

    def lap(self) -> tuple[float, float]:
        """Seconds a step since the last lap, and the share of them outside optimizer steps; then start anew."""
        seconds, inside, steps = self._seconds, self._inside, max(self.steps, 1)
        self.total_steps += self.steps
        self.total_seconds += seconds
        self.total_inside += inside
        self.steps, self._seconds, self._inside = 0, 0.0, 0.0
        return seconds / steps, _outside(seconds, inside)

    @property
    def overhead(self) -> float:
        """The share of all time outside optimizer steps."""
        return _outside(self.total_seconds, self.total_inside)

    @property
    def seconds_outside(self) -> float:
        """Mean seconds a step outside optimizer steps."""
        return self.overhead * self.total_seconds / max(self.total_steps, 1)

    def _enter(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def _leave(self, *args: Any) -> None:
        self._inside += time.perf_counter() - self._began


def _outside(seconds: float, inside: float) -> float:
    return 1.0 - inside / seconds if seconds > 0 and inside > 0 else float("nan")
