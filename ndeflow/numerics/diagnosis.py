"""Why a solve took the steps it took: stability, a jump in the field, knots, rounding, or the accuracy asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import torch

from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.course import Course
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import path_of
from ndeflow.numerics.solution import Solution

CHEAP = 20  # attempts
ROUNDINGS, APART = 2.0, 100.0  # tolerance in eps |y|, steps in eps |t|
LOST = 0.2  # of the attempts
NEAR, MOST = 0.8, 0.5  # of the stability interval; of the steps, of the attempts


@final
@dataclass(frozen=True)
class Diagnosis:
    """Why a solve cost what it did, in one line.

    kind: "cheap", "rounding", "discontinuous", "stiff", "knots", "saves", "accuracy", or "fixed" where steps are not
    chosen by an error. evidence: the numbers that this was judged by.
    """

    kind: str
    sentence: str
    evidence: Mapping[str, float]

    def __str__(self) -> str:
        return self.sentence


def diagnose(solution: Solution) -> Diagnosis:
    """Say in one line why an adaptive solve is expensive, the first of these that holds.

    - cheap: at most 20 attempts.
    - rounding: the tolerance atol + rtol |y| is below 2 eps |y| (root mean square over the solution), or half of
      the steps are below 100 eps |t|: the field hardly tells the times of their stages apart.
    - discontinuous: at a fifth of the attempts, rejecting lowered the error like h^p with p nearer to 1 than to the
      method's order: over a jump of the field the local error is O(h), whatever the method (Hairer, Norsett, Wanner
      1993, section II.6).
    - stiff: at half of the steps, h times the stiffness reaches 0.8 of the method's stability interval on the
      negative real axis (Hairer, Wanner 1996, section IV.2). Their error does not tell: a controller that holds its
      step size has a mean error near its aim, be it accuracy or stability that limits it. For methods with an
      estimate of stiffness only: dopri5, tsit5.
    - knots: a control path's pieces, crossed one by one, are at least half of the attempts.
    - saves: an SDE's steps end at save times, and these are at least half as many as the attempts.
    - accuracy: none of these.

    Of an SDE, whose errors follow its noise, cheap, knots, saves and accuracy.
    """
    solver = solution.solver
    if not isinstance(solver, Adaptive):
        sentence = f"fixed: {type(solver).__name__} does not report errors to judge by; solve once with RungeKutta()"
        return Diagnosis("fixed", sentence, {})
    course = Course.of(solution)
    checks: Any = _CHECKS if isinstance(solver, RungeKutta) else _OF_SDES
    return next(found for check in checks if (found := check(course, solution, solver)) is not None)


def _cheap(course: Course, solution: Solution, solver: Adaptive) -> Diagnosis | None:
    count = len(course.times)
    if count > CHEAP:
        return None
    return Diagnosis("cheap", f"cheap: {count} attempted steps", {"attempts": count})


def _rounding(course: Course, solution: Solution, solver: RungeKutta) -> Diagnosis | None:
    eps, y = torch.finfo(solution.ys.dtype).eps, solution.ys.detach().abs()
    asked = (eps * y / (solver.atol + solver.rtol * y)).square().mean().rsqrt().item()
    tried = zip(course.times, course.steps, course.accepted, strict=True)
    apart = median(abs(h) / (eps * abs(t)) if t else math.inf for t, h, kept in tried if kept)
    evidence, name = {"roundings": asked, "steps_in_roundings": apart}, str(solution.ys.dtype).removeprefix("torch.")
    if asked < ROUNDINGS:
        return Diagnosis("rounding", f"tolerance below rounding: it asks for {asked:.2g} eps |y| in {name}, and "
                         "tighter steps buy no accuracy; loosen it, or solve in float64", evidence)  # fmt: skip
    if apart < APART:
        return Diagnosis("rounding", f"times near rounding: half of the steps are below {apart:.2g} eps |t| in {name}; "
                         "count time from 0, or solve in float64", evidence)  # fmt: skip
    return None


def _discontinuous(course: Course, solution: Solution, solver: RungeKutta) -> Diagnosis | None:
    between = (2 + solver.tableau.error_order) / 2
    lost = sum(order < between for order in course.order()) / len(course.times)
    if lost < LOST:
        return None
    worst, rejected = course.collapse(), course.accepted.count(False)
    sentence = (
        f"discontinuous: {rejected} of {len(course.times)} attempts rejected, {worst.rejections} of them over "
        f"t = {worst.time:.4g}, where the step fell from {worst.before:.2g} to {worst.after:.2g}; "
        "end a solve at the jump, make it a knot of a control path, or smooth the field"
    )
    evidence = {"lost": lost, "rejected": rejected, "time": worst.time, "before": worst.before, "after": worst.after}
    return Diagnosis("discontinuous", sentence, evidence)


def _stiff(course: Course, solution: Solution, solver: RungeKutta) -> Diagnosis | None:
    limit = solver.stability
    near = [x for x in course.product if x >= NEAR * limit]
    share = len(near) / max(len(course.product), 1)
    if share < MOST:
        return None
    typical = median(near)
    sentence = (
        f"stiff: stability, not accuracy, limits the step (h times stiffness is {typical:.2g} of at most {limit:.2g} "
        f"at {share:.0%} of the steps), so a looser tolerance will not help; slow or regularise the dynamics, or "
        'use TorchDiffEq("scipy_solver"), which is implicit, with Backsolve()'
    )
    return Diagnosis("stiff", sentence, {"product": typical, "share": share, "limit": limit})


def _knots(course: Course, solution: Solution, solver: Adaptive) -> Diagnosis | None:
    path = path_of(solution.problem.context)
    if path is None:
        return None
    knots, (low, high) = path.knots.detach(), solution.problem.ts.detach().aminmax(dim=-1, keepdim=True)
    crossed = torch.minimum(knots[..., 1:], high) > torch.maximum(knots[..., :-1], low)
    pieces = int(crossed.sum(dim=-1).max())
    share = pieces / len(course.times)
    if share < MOST:
        return None
    sentence = (
        f"knots: {pieces} pieces of the control path, crossed one by one, in {len(course.times)} attempts; "
        "take a path with fewer knots, or fixed steps"
    )
    return Diagnosis("knots", sentence, {"pieces": pieces, "share": share})


def _saves(course: Course, solution: Solution, solver: Adaptive) -> Diagnosis | None:
    intervals = int((solution.problem.ts.detach().diff(dim=-1) > 0).sum(dim=-1).max())
    share = intervals / len(course.times)
    if share < MOST:
        return None
    sentence = (
        f"saves: {intervals} intervals between save times, crossed one by one, in {len(course.times)} attempts; "
        "ask for fewer times"
    )
    return Diagnosis("saves", sentence, {"intervals": intervals, "share": share})


def _accuracy(course: Course, solution: Solution, solver: Adaptive) -> Diagnosis:
    count, saved = len(course.times), 1 - 10 ** (-1 / solver.order)
    sentence = f"accuracy: {count} attempts, the steps that rtol {solver.rtol:.1g} and atol {solver.atol:.1g} ask for"
    if course.product or not isinstance(solver, RungeKutta):
        sentence += f"; ten times looser would save about {saved:.0%}"
    else:
        sentence += f", or stability, which {solver.method} does not estimate; solve once with dopri5 to tell"
    return Diagnosis("accuracy", sentence, {"attempts": count, "saved": saved})


_CHECKS = (_cheap, _rounding, _discontinuous, _stiff, _knots, _accuracy)
_OF_SDES = (_cheap, _knots, _saves, _accuracy)
