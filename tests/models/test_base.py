"""What a regularizer does to a solve is invisible to the model and visible to the regularizer."""

import torch
from torch import nn

from ndeflow.contracts import Output, Regularizer
from ndeflow.models import NeuralODE
from ndeflow.models.trajectory import first_seen
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.explicit import RungeKutta
from tests.models.series import irregular_batch


class Decay(NeuralODE):
    """dy/dt = -rate y."""

    def __init__(self, **options):
        super().__init__(**options)
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def field(self, t, y):
        return -self.rate * y


class Squares(Integrand):
    """The integral of |y|^2."""

    def forward(self, at, own):
        return at.y.square().sum(-1)


class Curious(Regularizer):
    """Asks for states at times of its own and for an integral."""

    def __init__(self, times):
        super().__init__()
        self.times, self.integrand = times, Squares()

    def prepare(self, problem):
        return problem.with_probes(self.times.expand(len(problem.y0), -1)).with_integrand(self.integrand)

    def penalty(self, model, output, batch, solved):
        return output.prediction.new_zeros(())


def problem():
    batch = irregular_batch()
    batch = batch._replace(ys=batch.ys.double(), ts=batch.ts - batch.ts[:, :1] + torch.linspace(0, 1, 7) * 1e-3)
    return batch, Decay(solver=RungeKutta("tsit5", rtol=1e-10, atol=1e-12))


def test_a_user_model_solves_its_equation():
    batch, model = problem()
    exact = first_seen(batch)[:, None] * torch.exp(-0.7 * (batch.ts - batch.ts[:, :1]))[..., None]
    torch.testing.assert_close(model(batch).prediction, exact, rtol=1e-8, atol=1e-10)


def test_preparation_is_invisible_to_the_model_and_seen_by_each_regularizer():
    batch, model = problem()
    plain = model(batch)
    earliest = batch.ts[:, -1].min()
    first, second = torch.stack([earliest * 0.2]), torch.stack([earliest * 0.1, earliest * 0.5])
    with model.prepared({"one": Curious(first), "two": Curious(second)}) as preparation:
        output = model(batch)
    torch.testing.assert_close(output.prediction, plain.prediction)
    assert output.solutions[0].integrals.shape[-1] == 0
    for name, times in (("one", first), ("two", second)):
        (solved,) = preparation.solved[name]
        exact = first_seen(batch)[:, None] * torch.exp(-0.7 * times)[:, None]
        torch.testing.assert_close(solved.solution.ys[:, list(solved.probes)], exact, rtol=1e-8, atol=1e-10)
        assert len(solved.integrals) == 1
        span = batch.ts[:, -1] - batch.ts[:, 0]
        energy = first_seen(batch).square().sum(-1) * (1 - torch.exp(-1.4 * span)) / 1.4
        last = solved.solution.integrals[:, batch.ts.shape[1] - 1, solved.integrals[0]]
        torch.testing.assert_close(last, energy, rtol=1e-8, atol=1e-10)


def test_outside_of_preparation_regularizers_are_forgotten():
    batch, model = problem()
    with model.prepared({"one": Curious(torch.tensor([1e-4]))}):
        pass
    assert isinstance(model(batch), Output)
    assert model(batch).solutions[0].problem.integrands == ()


def test_unregularized_solves_are_exempt():
    batch, model = problem()
    with model.prepared({"one": Curious(torch.tensor([1e-4]))}) as preparation:
        model.solve(first_seen(batch), batch.ts, regularized=False)
    assert preparation.solved["one"] == []
