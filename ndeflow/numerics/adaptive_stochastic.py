"""Adaptive steps of an SDE: pairs of solutions whose difference is the error, and the solver that steps by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.compilation import stepper_for
from ndeflow.numerics.controllers import Controller, I
from ndeflow.numerics.field import SDE
from ndeflow.numerics.form import StochasticForm
from ndeflow.numerics.nodes import Nodes, RowNodes
from ndeflow.numerics.pacing import Pace, Shared
from ndeflow.numerics.persample import PerSample
from ndeflow.numerics.segments import Segments, fixed_segments
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.stiffness import quotient
from ndeflow.numerics.stochastic import (
    Driven,
    Terms,
    check_sde,
    euler,
    increments,
    milstein,
    nonzero_root,
    per_row,
    root,
    terms,
)
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Trace

Advance = Callable[[Terms, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Trial(NamedTuple):
    """What a step gives: z at its end, its error, and between its start and the point where it looks at the drift a
    second time, the differences of drift and state; all like z."""

    z: Tensor
    error: Tensor
    rise: Tensor
    run: Tensor


def heun(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Trial:
    """Stochastic Heun's step and its difference to Euler's: (h (f1 - f) + (g1 - g) dW) / 2, at the point ahead."""
    g = sde.diffusion(t, z)
    run = h * f + sde.spread(g, dw)
    ahead = z + run
    slope = sde.drift(t + h, ahead) - f
    rise = h * slope + sde.spread(sde.diffusion(t + h, ahead) - g, dw)
    return Trial(ahead + 0.5 * rise, 0.5 * rise, slope, run)


def midpoint(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Trial:
    """The stochastic midpoint's step and its difference to Euler's: h (f' - f) + (g' - g) dW, at the middle."""
    g = sde.diffusion(t, z)
    change = h * f + sde.spread(g, dw)
    run, t = 0.5 * change, t + 0.5 * h
    half = z + run
    slope = sde.drift(t, half) - f
    rise = h * slope + sde.spread(sde.diffusion(t, half) - g, dw)
    return Trial(z + change + rise, rise, slope, run)


def doubled(advance: Advance, sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Trial:
    """Two half steps and their difference to the whole one. dw: (B, 2, m), over either half."""
    left, right = dw.unbind(1)
    half = 0.5 * h
    middle = advance(sde, t, z, f, half, left)
    drift = sde.drift(t + half, middle)
    after = advance(sde, t + half, middle, drift, half, right)
    return Trial(after, after - advance(sde, t, z, f, h, left + right), drift - f, middle - z)


def twice_euler(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Trial:
    """Euler-Maruyama by step doubling."""
    return doubled(euler, sde, t, z, f, h, dw)


def twice_milstein(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Trial:
    """Milstein's method by step doubling."""
    return doubled(milstein, sde, t, z, f, h, dw)


def in_stratonovich(sde: Terms, t: Tensor, z: Tensor, h: Tensor, area: Tensor) -> Terms:
    """An SDE in the sense of Ito with the drift of its Stratonovich form, which is below Ito's, for scalar and diagonal
    noise by g_i dg_i / dz_i / 2 at (t, z).

    s_i (g_i(z + s g sqrt h) - g_i(z - s g sqrt h)) / (4 sqrt h), to O(h), with the signs s of a space-time Levy area
    (B, m) of the step: they are independent of the increments. Where components of a diagonal g depend on others too,
    s_i s_k g_k dg_i / dz_k vanishes in the mean. Kloeden & Platen 1992, §4.9; Bekas, Kokiopoulou, Saad 2007, An
    estimator for the diagonal of a matrix, Appl. Numer. Math. 57(11-12).
    """
    g, size, sign = sde.diffusion(t, z), per_row(h), torch.where(area < 0, -1.0, 1.0).to(z.dtype)
    ahead = sde.spread(g, sign * root(size))
    rise = sde.diffusion(t, z + ahead) - sde.diffusion(t, z - ahead)
    below = sde.spread(rise, 0.25 * sign / nonzero_root(size))
    return sde._replace(drift=lambda t, z: sde.drift(t, z) - below, ito=False)


@dataclass(frozen=True)
class Pair:
    """A method and its error. advance: (sde, t, z, f, h, dw) -> `Trial`; see `Scheme`.

    order: of the error. parts: what dw is of: 1, the whole step, (B, m); 2, its halves, (B, 2, m). stability: the
    largest h a for which the mean of dz = -a z dt + g dW does not grow. noises: the types that it may step adaptively
    in either sense, beside those of `stratonovich`, whose Ito form must be another's.
    """

    advance: Callable[[Terms, Tensor, Tensor, Tensor, Tensor, Tensor], Trial]
    order: float
    parts: int
    stability: float
    noises: tuple[str, ...]
    stratonovich: tuple[str, ...] = ()


SMALL = 1e-3
COMMUTING = ("scalar", "diagonal", "additive")
PAIRS: Mapping[str, Pair] = MappingProxyType(
    {
        "heun": Pair(heun, 1.0, 1, 2.0, COMMUTING, ("general",)),
        "midpoint": Pair(midpoint, 1.0, 1, 2.0, COMMUTING, ("general",)),
        "milstein": Pair(twice_milstein, 1.5, 2, 4.0, ("scalar", "diagonal")),
        "euler": Pair(twice_euler, 1.5, 2, 4.0, ("additive",)),
    }
)


@final
@dataclass(frozen=True)
class AdaptiveStochastic(Adaptive):
    """Adaptive steps of an SDE in increasing time, on one Brownian path, whatever is tried and rejected.

    method: "heun" or "midpoint", whose error is their difference to Euler's step, for all noise in Stratonovich's sense
    and all but general noise in Ito's, by its Stratonovich drift; "milstein" (scalar and diagonal noise) and "euler"
    (additive noise), with step doubling: the two half steps count, their difference to the whole one is the error.
    Euler steps that are chosen by the noise do not converge to the solution where the diffusion depends on the state
    (Gaines, Lyons 1997), nor do Milstein's where components of a diagonal one depend on others, and for Ito's integral
    they do so slowly: heun is best there.

    The scaled error decides as in `RungeKutta`, whose options these are; it is on the graph, increments are constants.
    Steps end at save times, or at the knots of a control path; then save times must be knots. Between two of these they
    are nodes of a dyadic tree: see `nodes`. The path of a row there depends on the problem's `Brownian`, the interval's
    number and its length alone, not on tolerances or other rows. States between steps (probes) are interpolated
    linearly, with shared stepping.

    stats.stiffness is |f(t', z') - f(t, z)| / |z' - z|, the slope of the drift f towards the point z' where the step
    looks at it again: ahead for heun, halfway for the others. Of f = A z it is |A v| / |v| with v = z' - z: |A| in one
    dimension; in d, where like noises give v any direction, its mean square tends to |A|_F^2 / d as h -> 0, the mean
    square of A's singular values, of which it never exceeds the largest. (The two stages of `RungeKutta` differ by a
    high power of h A, which favours the fastest direction.) The slope of the diffusion is no part of it. A drift that
    depends on time adds up to h |df/dt| / |v|, which is O(sqrt h) under noise. Floors of the norms are as there.

    stats.nfe counts the drift: 2 an attempt, and 3 to find the first step's size. Raises as `RungeKutta` does, and
    ValueError for what a method cannot step.
    """

    method: str = "heun"
    rtol: float = 1e-2
    atol: float = 1e-2
    controller: Controller = I(largest=2.0)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(PAIRS)

    @property
    def order(self) -> float:
        return PAIRS[self.method].order

    @property
    def parts(self) -> int:
        """What the noise of a step is of: see `Pair`."""
        return PAIRS[self.method].parts

    @property
    def stiffness(self) -> bool:
        return True

    @property
    def stability(self) -> float:
        return PAIRS[self.method].stability

    @property
    def evaluations(self) -> int:
        """Of the drift, in a step."""
        return 2

    def check(self, problem: Problem) -> None:
        check_sde(problem, "AdaptiveStochastic")
        super().check(problem)
        field = problem.field
        if not solves(PAIRS[self.method], field):
            raise ValueError(
                f"expected {' or '.join(PAIRS[self.method].noises)} noise for adaptive steps of {self.method}, got "
                f"{field.noise_type} noise in the sense of {field.sde_type}; use {_cure(field)}"
            )
        if problem.probes is not None and self.apart:
            raise ValueError(
                "expected batching=shared for states between save times of an SDE, got per_sample; use shared"
            )

    def cut(self, problem: Problem) -> Segments:
        return fixed_segments(problem)

    def system(self, problem: Problem) -> Driven:
        self.check(problem)
        system = Driven(problem, self.cut(problem))
        system.dense = problem.probes is not None
        return system

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> Self:
        system.engine = stepper_for(self, StochasticForm, self, system, recording, keeping)
        return self

    def pace(self, system: System, stepper: Stepper, trace: Trace) -> Pace:
        assert isinstance(system, Driven)
        given = system.problem.noise, system.index, stepper, self.parts
        if self.apart:
            return PerSample(self.rules, stepper, trace, RowNodes(*given))
        return Shared(self.rules, stepper, trace, Nodes(*given))

    def begin(self, system: System, t: Tensor, z: Tensor, slope: Tensor | None) -> None:
        """Nothing is carried: a rejected step is tried again with another increment."""

    @torch.no_grad()
    def start(self, leg: System, z: Tensor, slope: Tensor) -> Tensor:
        """The step whose error would be a quarter of the tolerance if each increment were one standard deviation.

        By the error of such a step over a thousandth of the segment, and at most a hundred times as long. Were the
        whole segment tried first, a path whose error vanishes there by chance would be accepted.
        """
        assert isinstance(leg, InitialValue)
        noise = z.new_ones(len(z), 2, leg.problem.field.noise_size)
        ratio: Any = self.advance(leg, leg.start, z, leg.length * SMALL, None, noise).ratio
        error = self.together(leg, ratio)
        longer = (0.25 / error) ** (1 / self.order)
        longer = torch.where(error.isfinite(), longer.clamp(max=100.0), 1.0)
        begun = z + slope
        sound = self.norm(leg, begun, leg.judged(begun).abs()).isfinite()
        return torch.where(sound, SMALL * longer, torch.nan)

    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        """One step. noise: (B, 2, noise_size) normals, of W and V = sqrt(12) H, its space-time Levy area, or of W over
        its halves where steps are doubled."""
        assert isinstance(system, InitialValue)
        field, sde = system.problem.field, terms(system)
        t, h, dw = increments(t, z, h, noise, (2, field.noise_size), self.parts)
        if self.parts == 1:
            dw, area = dw.unbind(1)
            if sde.ito and field.noise_type != "additive":
                sde = in_stratonovich(sde, t, z, h, area)
        f = sde.drift(t, z)
        z1, error, rise, run = PAIRS[self.method].advance(sde, t, z, f, h, dw)
        stiffness = quotient(*map(system.judged, (rise, run, f, z)))
        return self.estimated(system, z, Step(z1, error, None, stiffness, None, None), z1)


def solves(pair: Pair, field: SDE) -> bool:
    """Whether a pair can step an SDE adaptively."""
    return field.noise_type in pair.noises + (pair.stratonovich if field.sde_type == "stratonovich" else ())


def _cure(field: SDE) -> str:
    """Methods that solve this SDE, as a newcomer may type them."""
    able = [f'AdaptiveStochastic("{name}")' for name, pair in PAIRS.items() if solves(pair, field)]
    return " or ".join(able) or 'Stochastic("euler"), or state it in the sense of Stratonovich'
