"""Penalties of cost on every kind of model: a step of training with finite gradients, or a refusal with the cure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, Regularizer
from ndeflow.models import CDEClassifier, LatentODE, LatentSDE, Model, NeuralCDE, NeuralSDE, SDEClassifier
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solution import Adjoint, Solver
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.regularizers import EndTimeJitter, GlobalError, LocalError, LocalStiffness, Stiffness
from tests.models.series import irregular_batch

CHANNELS, PATH = 2, 3
LATENT = {"latent": 3, "hidden": 4, "width": 8, "draws": 2}
PATH_DRIVEN = {"hidden": 4, "width": 8}


class OwnCDE(NeuralCDE):
    """A neural CDE with one linear layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.initial, self.rate = nn.Linear(PATH, 4), nn.Linear(4, 4 * PATH)

    def encode(self, x0, batch):
        return self.initial(x0)

    def field(self, t, z, *context):
        return self.rate(z).tanh().unflatten(-1, (4, PATH))

    def decode(self, zs, batch):
        return zs[:, -1]


class OwnSDE(NeuralSDE):
    """A neural SDE with one linear layer each; where `ends`, read at the end alone."""

    def __init__(self, ends: bool = False, **options):
        super().__init__(noise_size=CHANNELS, draws=2, **options)
        self.rate, self.spread, self.ends = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS), ends

    def drift(self, t, y):
        return self.rate(y).tanh()

    def diffusion(self, t, y):
        return self.spread(y).sigmoid()

    def times(self, batch):
        return batch.ts[:, [0, -1]] if self.ends else batch.ts


class Kind(NamedTuple):
    """How a model is made, and what estimates errors of its steps and what does not."""

    make: Callable[..., Model]
    adaptive: Solver
    fixed: Solver


def of_ode(make: Callable[..., Model]) -> Kind:
    return Kind(make, RungeKutta(rtol=1e-3, atol=1e-3), FixedRungeKutta("midpoint"))


def of_sde(make: Callable[..., Model]) -> Kind:
    return Kind(make, AdaptiveStochastic(rtol=3e-2, atol=3e-2), Stochastic())


KINDS = {
    "NeuralCDE": of_ode(OwnCDE),
    "CDEClassifier": of_ode(lambda **k: CDEClassifier(CHANNELS, 3, **PATH_DRIVEN, **k)),
    "LatentODE": of_ode(lambda **k: LatentODE(CHANNELS, **LATENT, **k)),
    "NeuralSDE": of_sde(OwnSDE),
    "NeuralSDE at its end": of_sde(lambda **k: OwnSDE(ends=True, **k)),
    "SDEClassifier": of_sde(lambda **k: SDEClassifier(CHANNELS, 3, **PATH_DRIVEN, **k)),
    "LatentSDE": of_sde(lambda **k: LatentSDE(CHANNELS, **LATENT, **k)),
}
GLOBAL: list[Regularizer] = [GlobalError(), GlobalError(aggregate="mean"), Stiffness(), Stiffness(aggregate="mean")]
LOCAL: list[Regularizer] = [
    LocalError(),
    LocalError(sampling="biased"),
    LocalStiffness(),
    LocalStiffness(sampling="unbiased"),
]


def name(regularizer: Regularizer) -> str:
    return type(regularizer).__name__ + "".join(f" {x}" for x in vars(regularizer).values() if isinstance(x, str))


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    torch.manual_seed(0)
    return KINDS[request.param]


def penalised(model: Model, regularizer: Regularizer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and penalty of one step of training."""
    regularizer.check(model)
    model.reseed(1)
    with model.prepared({"it": regularizer}) as preparation:
        output = model(batch)
    return output.prediction.square().mean(), regularizer.penalty(model, output, batch, preparation.solved["it"])


def assert_trains(model: Model, regularizer: Regularizer) -> None:
    loss, penalty = penalised(model, regularizer, irregular_batch())
    assert penalty.isfinite() and penalty > 0
    moved = torch.autograd.grad(penalty, list(model.dynamics.parameters()), allow_unused=True, retain_graph=True)
    assert any(g is not None and bool(g.any()) for g in moved)
    (loss + penalty).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("regularizer", [*GLOBAL, *LOCAL], ids=name)
def test_a_step_of_training_with_its_gradient(kind, regularizer, adjoint):
    assert_trains(kind.make(solver=kind.adaptive, adjoint=adjoint), regularizer)


@pytest.mark.parametrize("regularizer", LOCAL, ids=name)
@pytest.mark.parametrize("which", ["NeuralCDE", "CDEClassifier", "LatentODE"])
def test_with_backsolve_the_local_ones_serve(which, regularizer):
    torch.manual_seed(0)
    assert_trains(KINDS[which].make(solver=KINDS[which].adaptive, adjoint=Backsolve()), regularizer)


@pytest.mark.parametrize("regularizer", GLOBAL, ids=name)
def test_with_backsolve_the_global_ones_are_refused(kind, regularizer):
    refused(kind, regularizer, r"use adjoint=direct or adjoint=checkpointed .* or its local form", adjoint=Backsolve())


@pytest.mark.parametrize("regularizer", [*GLOBAL, *LOCAL], ids=name)
def test_fixed_steps_estimate_nothing_and_are_refused(kind, regularizer):
    cure = "or of an SDE adaptive_stochastic" if "Stiffness" in name(regularizer) else "of an SDE adaptive_stochastic"
    refused(kind, regularizer, cure, solver=kind.fixed)


@pytest.mark.parametrize("regularizer", [*GLOBAL, *LOCAL], ids=name)
def test_where_no_solver_is_chosen_an_sde_takes_fixed_steps_which_the_first_solve_refuses(regularizer):
    for make in (OwnSDE, KINDS["SDEClassifier"].make, KINDS["LatentSDE"].make):
        with pytest.raises(ValueError, match=r"expected a solver that .* adaptive_stochastic"):
            penalised(make(), regularizer, irregular_batch())


def refused(kind: Kind, regularizer: Regularizer, cure: str, adjoint: Adjoint | None = None, **options) -> None:
    model = kind.make(**({"solver": kind.adaptive} | options), adjoint=adjoint)
    with pytest.raises(ValueError, match=cure):
        regularizer.check(model)


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_rows_that_step_apart_have_their_own_penalties(kind, batching):
    solver = type(kind.adaptive)(rtol=3e-2, atol=3e-2, batching=batching)
    for regularizer in (GlobalError(), Stiffness(), LocalError(sampling="biased"), LocalStiffness()):
        assert_trains(kind.make(solver=solver), regularizer)


JITTERED = {
    "NeuralCDE": "without a control path",
    "CDEClassifier": "without a control path",
    "SDEClassifier": "without a control path",
    "LatentSDE": "whose targets would move",
    "LatentODE": "whose targets would move",
    "NeuralSDE": "whose targets would move",
    "NeuralSDE at its end": None,
}


@pytest.mark.parametrize("which", JITTERED)
def test_end_times_move_where_no_target_would(which):
    torch.manual_seed(0)
    kind, refusal = KINDS[which], JITTERED[which]
    model, batch = kind.make(solver=kind.fixed), irregular_batch()
    if refusal is not None:
        with pytest.raises(ValueError, match=re.escape(refusal) + ".*; use"):
            penalised(model, EndTimeJitter(), batch)
        return
    with model.prepared({"end": EndTimeJitter()}):
        solution = model(batch).solutions[0]
    share = (solution.ts[:5, -1] - batch.ts[:, 0]) / (batch.ts[:, -1] - batch.ts[:, 0])
    assert abs(share[0] - 1) > 1e-3 and torch.allclose(share, share[0])
    loss, penalty = penalised(model, EndTimeJitter(), batch)
    (loss + penalty).backward()
    assert penalty == 0 and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
