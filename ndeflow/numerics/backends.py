"""torchdiffeq and torchsde behind the same door: the one file that names them; each is imported when first used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.field import NOISE_TYPES, SDE
from ndeflow.numerics.foreign import Call, Foreign
from ndeflow.numerics.mesh import Place
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.segments import adaptive_segments, fixed_segments
from ndeflow.numerics.solution import Solution, SolveError
from ndeflow.numerics.stochastic import Numbered, check_sde, terms
from ndeflow.numerics.system import InitialValue


@dataclass(frozen=True)
class TorchDiffEq(Foreign):
    """The solvers of torchdiffeq, for ODEs whose rows share their times.

    method: any of torchdiffeq's: adaptive (dopri5, dopri8, bosh3, fehlberg2, adaptive_heun), fixed (euler, midpoint,
    heun2, heun3, rk4, explicit_adams, implicit_adams), or scipy_solver, which autograd cannot record. options: as
    torchdiffeq takes them, such as {"step_size": 0.1}, without which a fixed method steps from time to time. The
    error norm is the RMS over batch and state together, without integrals. A control path is solved piece by piece.
    explicit_adams is unstable at its default order: give it {"max_order": 4}.

    stats.nfe counts one evaluation more than torchdiffeq makes, for the opening check; steps are those it reports
    (scipy_solver: none). Raises ValueError for what cannot be solved, SolveError where torchdiffeq gives up.
    """

    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-4
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in _torchdiffeq_methods():
            known = ", ".join(_torchdiffeq_methods())
            raise ValueError(f"expected a method of torchdiffeq among {known}, got {self.method!r}")

    def system(self, problem: Problem) -> InitialValue:
        if isinstance(problem.field, SDE):
            raise ValueError("expected an ODE for TorchDiffEq, got an SDE; use TorchSDE() or Stochastic()")
        return InitialValue(problem, adaptive_segments(problem))

    def call(self, call: Call) -> Tensor:
        import torchdiffeq

        odeint: Any = torchdiffeq.odeint if call.backward is None else torchdiffeq.odeint_adjoint
        leg, options = call.system, dict(self.options or {})
        if leg.columns:
            options.setdefault("norm", lambda z: leg.judged(z).abs().square().mean().sqrt())
        settings: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        if call.backward is None:
            self._check_recordable(call)
        else:
            again = {k: v for k, v in options.items() if k != "norm"}
            settings["adjoint_options"] = again | ({"norm": "seminorm"} if call.backward.seminorm else {})
            settings["adjoint_params"] = call.backward.tensors
        rates = Rates(call, _torchdiffeq_methods()[self.method].valid_callbacks())
        try:
            return odeint(rates, call.z, torch.stack(call.clock), **settings)
        except AssertionError as error:
            raise self._failure(call, error) from error

    def _check_recordable(self, call: Call) -> None:
        problem = call.system.problem
        tensors = [call.z, *call.clock, *replay.conditions(problem)]
        tensors += replay.parameters(problem) if isinstance(problem.field, torch.nn.Module) else []
        if self.method == "scipy_solver" and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            raise ValueError("autograd cannot record scipy_solver; use Backsolve() as adjoint, or torch.no_grad()")

    def _failure(self, call: Call, error: AssertionError) -> SolveError:
        where, size = call.clock[0].detach().item(), ""
        if call.log.accepted:
            _, t, h = call.log.accepted[-1]
            where, size = t + h, f", last step size {h:.3g}"
        return SolveError(
            f"torchdiffeq gave up near time {where:.6g}{size}: {str(error)[:100]} ({self}); "
            "loosen rtol and atol, bound the field, or use float64"
        )


class Rates:
    """A system as torchdiffeq calls it, reporting steps through those callbacks that the method has."""

    def __init__(self, call: Call, callbacks: set[str]) -> None:
        self._call = call
        self._sign = -1.0 if bool(call.clock[-1] < call.clock[0]) else 1.0
        if "callback_accept_step" in callbacks:
            self.callback_accept_step, self.callback_reject_step = self._accept, self._reject
        elif "callback_step" in callbacks:
            self.callback_step = self._accept

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        return self._call.system(t, z)

    def _accept(self, t: Tensor, z: Tensor, h: Tensor) -> None:
        self._call.log.accept(t.detach().item(), self._sign * h.detach().item(), z)

    def _reject(self, t: Tensor, z: Tensor, h: Tensor) -> None:
        self._call.log.reject(t.detach().item(), self._sign * h.detach().item())


def _torchdiffeq_methods() -> dict[str, Any]:
    """torchdiffeq's own table of methods."""
    from torchdiffeq._impl.odeint import SOLVERS

    return SOLVERS


class Kind(NamedTuple):
    """What a method of torchsde is good for, and which Levy area it needs."""

    calculi: tuple[str, ...]
    noises: tuple[str, ...] = NOISE_TYPES
    area: str = "none"


NOT_GENERAL = ("scalar", "additive", "diagonal")
TORCHSDE: Mapping[str, Kind] = MappingProxyType(
    {
        "euler": Kind(("ito",)),
        "milstein": Kind(("ito", "stratonovich"), NOT_GENERAL),
        "srk": Kind(("ito",), NOT_GENERAL, "space-time"),
        "euler_heun": Kind(("stratonovich",)),
        "heun": Kind(("stratonovich",)),
        "midpoint": Kind(("stratonovich",)),
        "reversible_heun": Kind(("stratonovich",)),
        "log_ode": Kind(("stratonovich",), area="foster"),
    }
)


@dataclass(frozen=True)
class TorchSDE(Foreign):
    """The solvers of torchsde, for SDEs whose rows share their times.

    method: any of torchsde's (euler, milstein, srk, euler_heun, heun, midpoint, reversible_heun, log_ode); None: its
    own choice (Ito srk, for general noise euler; Stratonovich midpoint). With additive noise the integrals are the
    same, and any method serves. steps: equal steps a save interval, or a piece of the control path. options: as
    torchsde takes them, such as {"grad_free": True} for milstein. torchsde is given time counted in steps, so that
    no rounding splits one. The noise is the problem's `Brownian`, step by step that of `Stochastic`.

    adaptive: step doubling to rtol and atol, from `steps` as first guess; the noise is then torchsde's own, from the
    seed but not the index, never antithetic, and the mesh is not reported. Under `Backsolve` the gradient of
    reversible_heun is exact. Save intervals of equal length are crossed in one call. stats.nfe counts the drift, with
    one evaluation for the opening check and one for torchsde's own in each call. Raises ValueError for what cannot be
    solved, SolveError for a non-finite state.
    """

    method: str | None = None
    steps: int = 1
    adaptive: bool = False
    rtol: float = 1e-4
    atol: float = 1e-4
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in TORCHSDE:
            raise ValueError(f"expected a method of torchsde among {', '.join(TORCHSDE)}, or None, got {self.method!r}")
        if self.steps < 1:
            raise ValueError(f"expected at least 1 step a save interval, got {self.steps}")

    def method_for(self, sde: SDE) -> str:
        """The method, or torchsde's choice for this SDE."""
        if self.method is not None:
            return self.method
        if sde.sde_type == "stratonovich":
            return "midpoint"
        return "euler" if sde.noise_type == "general" else "srk"

    def integrate_adjoint(self, problem: Problem, seminorm: bool) -> Solution:
        if problem.ts.requires_grad:
            raise ValueError("expected times without gradients for torchsde's adjoint; detach ts, or use Direct()")
        return super().integrate_adjoint(problem, seminorm)

    def system(self, problem: Problem) -> InitialValue:
        check_sde(problem, "TorchSDE")
        sde, method = problem.field, self.method_for(problem.field)
        if not _serves(TORCHSDE[method], sde):
            able = " or ".join(f'TorchSDE("{name}")' for name, kind in TORCHSDE.items() if _serves(kind, sde))
            raise ValueError(
                f"torchsde's {method} does not solve SDEs in the sense of {sde.sde_type} with {sde.noise_type} noise; "
                f"use {able}"
            )
        if self.adaptive and problem.noise.antithetic:
            raise ValueError(
                "expected noise that is not antithetic for TorchSDE(adaptive=True), which makes its own; "
                "use fixed steps, adaptive=False"
            )
        if problem.keep_mesh:
            raise ValueError("torchsde does not give the states at its steps; use Stochastic()")
        return Numbered(problem, fixed_segments(problem), self.steps, channels(sde, TORCHSDE[method].area))

    def runs(self, system: InitialValue) -> list[range]:
        """Save intervals of equal length are crossed in one call, unless times need gradients."""
        edges, runs = system.segments.edges, []
        lengths = edges.detach().diff().tolist()
        apart = system.segments.pieces is not None or edges.requires_grad
        for k, length in enumerate(lengths):
            if runs and not apart and math.isclose(length, lengths[runs[-1].start], rel_tol=1e-6):
                runs[-1] = range(runs[-1].start, k + 1)
            else:
                runs.append(range(k, k + 1))
        return runs

    def call(self, call: Call) -> Tensor:
        import torchsde

        leg, first, last = call.system, round(call.marks[0]), round(call.marks[-1])
        assert isinstance(leg, Numbered)
        count = self.steps * (last - first)
        h = (leg.segments.edges[last] - leg.segments.edges[first]) / count
        method = self.method_for(leg.problem.field)
        taus = call.z.new_tensor([(mark - first) * self.steps for mark in call.marks])
        settings: dict[str, Any] = {
            "method": method,
            "dt": 1.0,
            "adaptive": self.adaptive,
            "rtol": self.rtol,
            "atol": self.atol,
            "options": dict(self.options or {}),
        }
        if self.adaptive:
            settings["bm"] = self._interval(leg, call.z, count, mix(leg.problem.noise.seed, first))
        else:
            settings["bm"] = Increments(leg, call.z, self.steps * first, TORCHSDE[method].area)
            start, size = leg.start.detach().item(), h.detach().item()
            call.log.accepted += [Place(0, start + n * size, size) for n in range(count)]
        sdeint: Any = torchsde.sdeint
        if call.backward is not None:
            sdeint = torchsde.sdeint_adjoint
            settings |= {"adjoint_rtol": self.rtol, "adjoint_atol": self.atol, "adjoint_params": call.backward.tensors}
        return sdeint(Rescaled(leg, h, TORCHSDE[method]), call.z, taus, **settings)

    def _interval(self, leg: InitialValue, z: Tensor, count: int, seed: int) -> Any:
        """torchsde's Brownian motion over `count` steps, which can be halved wherever an adaptive solve wants."""
        import torchsde

        sde = leg.problem.field
        return torchsde.BrownianInterval(
            t0=0.0,
            t1=float(count),
            size=(len(z), z.shape[1] if sde.noise_type == "diagonal" else sde.noise_size),
            dtype=z.dtype,
            device=z.device,
            entropy=seed,
            levy_area_approximation=TORCHSDE[self.method_for(sde)].area,
        )


class Rescaled:
    """A segment's SDE in time counted in steps of size h: dz = h f dtau + sqrt(h) g dW, as torchsde calls it."""

    def __init__(self, leg: InitialValue, h: Tensor, kind: Kind) -> None:
        sde = leg.problem.field
        self.noise_type = sde.noise_type
        self.sde_type = sde.sde_type if sde.sde_type in kind.calculi else kind.calculi[0]
        self._leg, self._terms, self._h = leg, terms(leg), h

    def f(self, tau: Tensor, z: Tensor) -> Tensor:
        return self._h.to(z.dtype) * self._terms.drift(self._time(tau, z), z)

    def g(self, tau: Tensor, z: Tensor) -> Tensor:
        g = self._terms.diffusion(self._time(tau, z), z)
        still = g.new_zeros(len(g), self._leg.columns, *g.shape[2:])
        return self._h.sqrt().to(z.dtype) * torch.cat([g, still], dim=1)

    def _time(self, tau: Tensor, z: Tensor) -> Tensor:
        return (self._leg.start + tau.to(self._h.dtype) * self._h).to(z.dtype)


class Increments:
    """A system's noise as torchsde asks for it, in time counted in steps, from step number `first`.

    W: (B, m), the increment of a step. U = W / 2 + H its time integral, with H ~ N(0, 1/12) the space-time Levy area.
    A: (B, m, m), the Levy area given W and H: H W' - W H' + a, with a skew and a_ij ~ N(0, 1/20 + (H_i^2 + H_j^2) / 5)
    (Foster 2020, "Numerical approximations for stochastic differential equations"). Integrals get no noise. Opposite
    paths have opposite W, H and a.
    """

    def __init__(self, leg: Numbered, z: Tensor, first: int, area: str) -> None:
        sde = leg.problem.field
        self._path, self._first, self._size = leg.path, first, sde.noise_size
        self._still = leg.columns if sde.noise_type == "diagonal" else 0
        self.shape = (len(z), self._size + self._still)
        self.dtype, self.device, self.levy_area_approximation = z.dtype, z.device, area

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        draws, m = self._path(self._first + round(float(ta))), self._size
        w = self._padded(draws[:, :m])
        if not (return_U or return_A):
            return w
        space_time = self._padded(draws[:, m : 2 * m]) / math.sqrt(12.0)
        areas = [0.5 * w + space_time] if return_U else []
        if return_A:
            areas.append(self._area(w, space_time, draws[:, 2 * m :]))
        return w, *areas

    def _padded(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), self._still)], dim=1) if self._still else x

    def _area(self, w: Tensor, space_time: Tensor, normals: Tensor) -> Tensor:
        outer = space_time.unsqueeze(-1) * w.unsqueeze(-2)
        squares = space_time.square()
        spread = (0.05 + 0.2 * (squares.unsqueeze(-1) + squares.unsqueeze(-2))).sqrt()
        upper = torch.zeros_like(outer)
        upper[:, : self._size, : self._size] = normals.unflatten(1, (self._size, self._size)).triu(1)
        return outer - outer.mT + spread * (upper - upper.mT)


def channels(sde: SDE, area: str) -> int:
    """How many normals a step needs: its increments, the space-time areas, and a square to make Levy areas of."""
    m = sde.noise_size
    return {"none": m, "space-time": 2 * m, "foster": 2 * m + m * m}[area]


def _serves(kind: Kind, sde: SDE) -> bool:
    same = sde.sde_type in kind.calculi or sde.noise_type == "additive"
    return same and sde.noise_type in kind.noises
