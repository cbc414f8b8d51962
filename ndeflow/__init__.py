"""Training of neural ordinary, controlled and stochastic differential equations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ndeflow.contracts import Batch, Output, Regularizer, Series
    from ndeflow.data import DataModule
    from ndeflow.load import load
    from ndeflow.models import Model, NeuralCDE, NeuralODE, NeuralSDE
    from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
    from ndeflow.numerics.adjoint import Checkpointed, Direct
    from ndeflow.numerics.backends import TorchDiffEq, TorchSDE
    from ndeflow.numerics.backsolve import Backsolve
    from ndeflow.numerics.brownian import Brownian
    from ndeflow.numerics.derivatives import Evaluation, Integrand
    from ndeflow.numerics.diagnosis import Diagnosis, diagnose
    from ndeflow.numerics.explicit import RungeKutta
    from ndeflow.numerics.field import SDE, ByValue, Controlled
    from ndeflow.numerics.fixed import FixedRungeKutta
    from ndeflow.numerics.reversible import Reversible
    from ndeflow.numerics.solution import Solution, SolveError, Stats
    from ndeflow.numerics.solve import solve
    from ndeflow.numerics.stochastic import Stochastic
    from ndeflow.tasks import Task

_HOMES = {
    "contracts": "Batch Output Regularizer Series",
    "data": "DataModule",
    "load": "load",
    "models": "Model NeuralCDE NeuralODE NeuralSDE",
    "numerics.adaptive_stochastic": "AdaptiveStochastic",
    "numerics.adjoint": "Checkpointed Direct",
    "numerics.backends": "TorchDiffEq TorchSDE",
    "numerics.backsolve": "Backsolve",
    "numerics.brownian": "Brownian",
    "numerics.derivatives": "Evaluation Integrand",
    "numerics.diagnosis": "Diagnosis diagnose",
    "numerics.explicit": "RungeKutta",
    "numerics.field": "SDE ByValue Controlled",
    "numerics.fixed": "FixedRungeKutta",
    "numerics.reversible": "Reversible",
    "numerics.solution": "Solution SolveError Stats",
    "numerics.solve": "solve",
    "numerics.stochastic": "Stochastic",
    "tasks": "Task",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [  # noqa: PLE0604
    "SDE", "AdaptiveStochastic", "Backsolve", "Batch", "Brownian", "ByValue", "Checkpointed", "Controlled",
    "DataModule", "Diagnosis", "Direct", "Evaluation", "FixedRungeKutta", "Integrand", "Model", "NeuralCDE",
    "NeuralODE", "NeuralSDE", "Output", "Regularizer", "Reversible", "RungeKutta", "Series", "Solution", "SolveError",
    "Stats", "Stochastic", "Task", "TorchDiffEq", "TorchSDE", "diagnose", "load", "solve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import ndeflow` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'ndeflow' has no attribute {name!r}")
    found = getattr(import_module(f"ndeflow.{_HOME[name]}"), name)
    globals()[name] = found  # also where a module of the package has the name, such as `load`
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
