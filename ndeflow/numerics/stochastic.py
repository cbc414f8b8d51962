"""Fixed-step methods for SDEs: Euler-Maruyama, Milstein, Heun, midpoint, reversible Heun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import reversible_heun
from ndeflow.numerics.brownian import Brownian, Path, step_normals
from ndeflow.numerics.chunks import engaged
from ndeflow.numerics.compilation import check_choice
from ndeflow.numerics.field import SDE
from ndeflow.numerics.marching import FixedMarching
from ndeflow.numerics.masking import check_on_failure
from ndeflow.numerics.segments import Segments
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import InitialValue, System


class Terms(NamedTuple):
    """An SDE as a scheme sees it: dz = drift(t, z) dt + spread(diffusion(t, z), dW) on the packed state z.

    drift: like z. diffusion: (B, d) for diagonal noise, else (B, d, m). spread: like z, of a diffusion and a (B, m)
    increment. ito: whose integral; Stratonovich's otherwise.
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    spread: Callable[[Tensor, Tensor], Tensor]
    ito: bool


def euler(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Tensor:
    """Euler-Maruyama: z + h f + g dW. Maruyama 1955; Kloeden & Platen 1992, eq. 10.2.4."""
    return z + h * f + sde.spread(sde.diffusion(t, z), dw)


def milstein(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Tensor:
    """Derivative-free Milstein, for scalar and diagonal noise.

    z + h f + g dW + (g(z~) - g) (dW^2 - h) / (2 sqrt h) with z~ = z + h f + g sqrt h; for Stratonovich's integral
    dW^2 in place of dW^2 - h, and z~ = z + g sqrt h. Kloeden & Platen 1992, §11.1.
    """
    g, size = sde.diffusion(t, z), per_row(h)
    ahead = z + sde.spread(g, root(size).expand_as(dw)) + (h * f if sde.ito else 0.0)
    second = (dw.square() - size if sde.ito else dw.square()) / (2.0 * nonzero_root(size))
    return z + h * f + sde.spread(g, dw) + sde.spread(sde.diffusion(t, ahead) - g, second)


def heun(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Tensor:
    """Stochastic Heun: the mean of drift and diffusion at z and at the Euler point ahead.

    Converges to Stratonovich's solution. Rümelin 1982, SIAM J. Numer. Anal. 19(3), 604-613.
    """
    g = sde.spread(sde.diffusion(t, z), dw)
    ahead = z + h * f + g
    after = sde.spread(sde.diffusion(t + h, ahead), dw)
    return z + 0.5 * (h * (f + sde.drift(t + h, ahead)) + g + after)


def midpoint(sde: Terms, t: Tensor, z: Tensor, f: Tensor, h: Tensor, dw: Tensor) -> Tensor:
    """Stochastic midpoint: half an Euler step, then a whole step with the drift and diffusion found there.

    Converges to Stratonovich's solution. Rümelin 1982, SIAM J. Numer. Anal. 19(3), 604-613.
    """
    half = z + 0.5 * (h * f + sde.spread(sde.diffusion(t, z), dw))
    t = t + 0.5 * h
    return z + h * sde.drift(t, half) + sde.spread(sde.diffusion(t, half), dw)


@dataclass(frozen=True)
class Scheme:
    """A method and what it is good for.

    advance: one step, (sde, t, z, f, h, dw) -> z at t + h, with f the drift at (t, z), dw (B, m) the increment of W,
    t and h 0-dim or columns that broadcast against z; None: reversible Heun, whose steps hand on more. calculi: whose
    integrals it converges to. orders: strong order by noise type; a type it does not list is refused. evaluations: of
    the drift, a step.
    """

    advance: Callable[[Terms, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None
    calculi: tuple[str, ...]
    orders: Mapping[str, float]
    evaluations: int = 1


EULER_ORDERS = {"scalar": 0.5, "diagonal": 0.5, "general": 0.5, "additive": 1.0}
STRATONOVICH_ORDERS = {"scalar": 1.0, "diagonal": 1.0, "general": 0.5, "additive": 1.0}
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "euler": Scheme(euler, ("ito",), EULER_ORDERS),
        "milstein": Scheme(milstein, ("ito", "stratonovich"), {"scalar": 1.0, "diagonal": 1.0}),
        "heun": Scheme(heun, ("stratonovich",), STRATONOVICH_ORDERS, 2),
        "midpoint": Scheme(midpoint, ("stratonovich",), STRATONOVICH_ORDERS, 2),
        "reversible_heun": Scheme(None, ("stratonovich",), EULER_ORDERS),
    }
)


@dataclass(frozen=True)
class Stochastic(FixedMarching):
    """Fixed steps of an SDE in increasing time, the noise of each row over its own interval.

    method: "euler" (Ito, strong order 1/2, additive noise 1), "milstein" (both integrals, scalar and diagonal noise,
    1), "heun" or "midpoint" (Stratonovich, 1; general noise 1/2), "reversible_heun" (Stratonovich, 1/2, additive noise
    1; one evaluation a step, and `Reversible()` takes its steps back); with additive noise the integrals are the same,
    and so any of them serves. Where components of a diagonal diffusion depend on other components than their own,
    orders are 1/2, and Milstein's method does not converge to Stratonovich's solution. steps: equal steps a save
    interval, or a segment where the context has a control path; then save times must be knots. Step n of row b has dW =
    sqrt(h_b) times the n-th normals of the problem's `Brownian`. States between steps (probes) are interpolated
    linearly.

    stats.nfe counts the drift: 1 a step, 2 for heun and midpoint. There are no error and stiffness estimates.
    compile, compile_after: as of `RungeKutta`; compiled steps make their noise themselves, the same numbers.
    on_failure: "raise" a SolveError for a non-finite state, or "mask" its row, as of `FixedRungeKutta`; a row's noise
    is its own, whichever others are solved with it.
    Raises ValueError, before any work, for what the method cannot solve.
    """

    method: str = "euler"
    steps: int = 1
    compile: str = "auto"
    compile_after: int = 100_000
    on_failure: str = "raise"

    randoms: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_choice(self.compile)
        check_on_failure(self.on_failure)
        if self.method not in SCHEMES:
            raise ValueError(f"expected a method among {', '.join(SCHEMES)}, got {self.method!r}; see also TorchSDE()")
        if self.steps < 1:
            raise ValueError(f"expected at least 1 step a save interval, got {self.steps}")

    def check(self, problem: Problem) -> None:
        check_sde(problem, "Stochastic")
        field, scheme = problem.field, SCHEMES[self.method]
        if field.noise_type not in scheme.orders:
            raise ValueError(
                f"expected {' or '.join(scheme.orders)} noise for the method {self.method}, got {field.noise_type}; "
                f"use {_cure(field)}"
            )
        if field.sde_type not in scheme.calculi and field.noise_type != "additive":
            raise ValueError(
                f"expected an SDE in the sense of {scheme.calculi[0]} for the method {self.method}, "
                f"got {field.sde_type}; use {_cure(field)}"
            )

    def system(self, problem: Problem) -> Numbered:
        self.check(problem)
        return Numbered(problem, self.cut(problem), self.steps, problem.field.noise_size)

    @property
    def evaluations(self) -> int:
        return SCHEMES[self.method].evaluations

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> FixedMarching:
        return engaged(self, system, recording, keeping)

    def noises(self, system: System, first: int) -> Sequence[Tensor]:
        assert isinstance(system, Numbered)
        return [system.path(first + n) for n in range(self.steps)]

    def numbers(self, system: System, first: int, size: int) -> Sequence[tuple[Tensor, ...]]:
        assert isinstance(system, Numbered)
        steps = torch.arange(first, first + self.steps, size, device=system.index.device)
        return [(step, *system.key, system.index) for step in steps.unbind()]

    def noise(self, system: System, numbers: Any, j: int, z: Tensor) -> Tensor:
        assert isinstance(system, Numbered)
        step, low, high, index = numbers
        return step_normals((low, high), index, step + j, system.channels, z.dtype)

    def noisy(self, system: InitialValue, t: Tensor, z: Tensor) -> list[Tensor]:
        return [system.diffusion(t, z)]

    @property
    def reversible(self) -> bool:
        """Whether steps can be taken back by `undo`."""
        return SCHEMES[self.method].advance is None

    @property
    def carries(self) -> int:
        return 3 if self.reversible else 0

    def begin(self, system: System, t: Tensor, z: Tensor, slope: Tensor | None) -> Any:
        assert isinstance(system, InitialValue)
        slope = system.slope(z) if slope is None else slope
        return reversible_heun.begin(terms(system), t.to(z.dtype), z, slope) if self.reversible else slope

    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        """One step. carry: what `begin` or the last step gave. noise: (B, noise_size) normals, dW = sqrt(h) noise."""
        assert isinstance(system, InitialValue)
        t, h, dw = increments(t, z, h, noise, (system.problem.field.noise_size,))
        scheme, sde = SCHEMES[self.method], terms(system)
        if scheme.advance is None:
            carry = reversible_heun.begin(sde, t, z, system(t, z)) if carry is None else carry
            after, carry = reversible_heun.advance(sde, t, z, h, dw, carry)
            return Step(after, None, None, None, None, carry)
        drift = system(t, z) if carry is None else carry
        return Step(scheme.advance(sde, t, z, drift, h, dw), None, None, None, None, None)

    def undo(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Tensor | None
    ) -> tuple[Tensor, Any]:
        assert isinstance(system, InitialValue)
        t, h, dw = increments(t, z, h, noise, (system.problem.field.noise_size,))
        return reversible_heun.undo(terms(system), t, z, h, dw, carry)


def increments(
    t: Tensor, z: Tensor, h: Tensor, noise: Tensor | None, shape: tuple[int, ...], parts: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """t and h as z is, and normals (B, *shape), of a shape (m,) or (n, m), times sqrt(h / parts)."""
    if noise is None or noise.shape[1:] != shape:
        found = "none" if noise is None else tuple(noise.shape)
        raise ValueError(
            f"expected the noise of an SDE's step, standard normals (B, {', '.join(map(str, shape))}), got {found}"
        )
    t, h = t.to(z.dtype), h.to(z.dtype)
    scale = root(per_row(h) / parts)
    return t, h, noise * (scale if len(shape) == 1 or scale.dim() == 0 else scale.unsqueeze(1))


class Driven(InitialValue):
    """A problem with noise as a system. channels: of the noise. index: (B,), of its rows."""

    def __init__(self, problem: Problem, segments: Segments) -> None:
        super().__init__(problem, segments)
        self.channels = problem.field.noise_size
        self.index = problem.noise.rows(len(problem.y0), problem.y0.device)


class Numbered(Driven):
    """With noise by the numbers of `steps` steps a segment: `path(n)` gives the normals of step n.

    normals: how many a step has for each row. key: the two words of the noise's seed, as tensors.
    """

    def __init__(self, problem: Problem, segments: Segments, steps: int, normals: int) -> None:
        super().__init__(problem, segments)
        y0, total = problem.y0, steps * (len(segments.edges) - 1)
        self.path = Path(problem.noise, normals, total, batch=len(y0), dtype=y0.dtype, device=y0.device)
        self.key = torch.tensor(problem.noise.key, device=y0.device).unbind()


def terms(system: InitialValue) -> Terms:
    """The SDE of a system on its packed state; integrals have no noise."""
    field = system.problem.field
    diagonal = field.noise_type == "diagonal"
    shape = (system.rows, system.width) if diagonal else (system.rows, system.width, field.noise_size)

    def diffusion(t: Tensor, z: Tensor) -> Tensor:
        g = system.diffusion(t, z)
        if g.shape != shape:
            raise ValueError(
                f"expected a diffusion of shape {shape} for {field.noise_type} noise, got {tuple(g.shape)}; "
                "return (B, d) for diagonal noise, else (B, d, noise_size)"
            )
        return g

    def spread(g: Tensor, noise: Tensor) -> Tensor:
        return system.join(g * noise if diagonal else (g @ noise.unsqueeze(-1)).squeeze(-1), None)

    return Terms(system, diffusion, spread, field.sde_type == "ito")


def per_row(h: Tensor) -> Tensor:
    """Step sizes that broadcast against a (B, m) increment: 0-dim, or (B, 1)."""
    return h.flatten(1) if h.ndim else h


def root(size: Tensor) -> Tensor:
    """sqrt(size), with gradient 0 for an empty step."""
    return torch.where(size > 0, nonzero_root(size), 0.0)


def nonzero_root(size: Tensor) -> Tensor:
    """sqrt(size), and 1 for an empty step, so that neither a quotient nor a gradient is infinite."""
    return torch.where(size > 0, size, 1.0).sqrt()


def check_sde(problem: Problem, solver: str) -> None:
    """Raise ValueError unless the problem is an SDE on (B, d) with its noise, in increasing time."""
    field, y0 = problem.field, problem.y0
    if not isinstance(field, SDE):
        raise ValueError(f"expected an SDE for {solver}, got {type(field).__name__}; use RungeKutta() for an ODE")
    if y0.ndim != 2 or y0.is_complex():
        raise ValueError(f"expected a real state of shape (B, d) for an SDE, got {y0.dtype} {tuple(y0.shape)}")
    if field.noise_type == "diagonal" and field.noise_size != y0.shape[1]:
        raise ValueError(
            f"expected a noise_size of {y0.shape[1]} for diagonal noise, the size of the state, got {field.noise_size}"
        )
    if not isinstance(problem.noise, Brownian):
        raise ValueError(f"expected noise=Brownian(seed, index) for an SDE, got {problem.noise!r}")
    problem.noise.check(len(y0))
    if bool((problem.ts.detach().diff(dim=-1) < 0).any()):
        raise ValueError(
            "expected increasing times for an SDE, got decreasing ones; write the reverse process as a field in "
            "reversed time s = T - t"
        )


def _cure(field: SDE) -> str:
    """Methods that solve this SDE, as a newcomer may type them."""
    able = [
        f'Stochastic("{name}")'
        for name, scheme in SCHEMES.items()
        if field.noise_type in scheme.orders and (field.sde_type in scheme.calculi or field.noise_type == "additive")
    ]
    return " or ".join(able)
