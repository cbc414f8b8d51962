"""Times of interleaved calls, and bytes kept."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

WARM = 2  # calls before the one that is timed


@dataclass(frozen=True)
class Times:
    """In seconds: minimum, median and interquartile range of the clock, minimum of this process on all its cores.

    rounds: by the clock, one after the other.
    """

    minimum: float
    median: float
    spread: float
    cpu: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> Times:
        """Of samples as `timed` gives them."""
        clock, cpu = zip(*samples, strict=True)
        low, middle, high = statistics.quantiles(clock, n=4, method="inclusive")
        return cls(min(clock), middle, high - low, min(cpu), clock)

    def scaled(self, factor: float) -> Times:
        *values, rounds = astuple(self)
        return Times(*(factor * value for value in values), rounds=tuple(factor * value for value in rounds))

    def over(self, other: Times) -> float:
        """How many times as long as the other, at the median over the rounds that both were called in."""
        return statistics.median(mine / its for mine, its in zip(self.rounds, other.rounds, strict=True))


def timed(call: Callable[[], object], processor: Callable[[], float] = time.process_time) -> tuple[float, float]:
    """Seconds that the call takes: of the clock, and of processor time, by default of this process alone."""
    clock, cpu = time.perf_counter(), processor()
    call()
    return time.perf_counter() - clock, processor() - cpu


def with_children() -> float:
    """Seconds of processor time of this process and of those that it started and waited for, as compilers."""
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def interleaved(calls: Sequence[Callable[[], object]], repeats: int) -> list[Times]:
    """Of each call, by turns: in every round each is called three times and timed the third, its caches warm.

    For a training loop calls the same again and again. Each round begins with another call. The garbage collector runs
    between rounds only.
    """
    samples: list[list[tuple[float, float]]] = [[] for _ in calls]
    gc.disable()
    try:
        for turn in range(repeats):
            gc.collect()
            for place in range(len(calls)):
                number = (turn + place) % len(calls)
                for _ in range(WARM):
                    calls[number]()
                samples[number].append(timed(calls[number]))
    finally:
        gc.enable()
    return [Times.of(each) for each in samples]


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a CUDA device; on the CPU nothing is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept_bytes(forward: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated during `forward` and not freed while its result is alive.

    By torch's allocators, so that it counts saved tensors, what an autograd function keeps in its ctx, and what
    compiled code allocates, each storage once.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        result = forward()
        after = torch.cuda.memory_allocated(device)
        del result
        return after - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        result = forward()
        gc.collect()
    del result
    return sum(event.self_cpu_memory_usage for event in events.events() or ())
