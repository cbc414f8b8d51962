"""A normalizing flow's likelihood and samples, against closed forms and numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ndeflow.contracts import Batch
from ndeflow.models import NormalizingFlow
from ndeflow.numerics.derivatives import ExactDivergence, HutchinsonDivergence
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.regularizers import EndTimeJitter, Kinetic, TrajectoryPolynomial
from tests.regularizers.fields import Linear

F64 = torch.float64
TIGHT = RungeKutta(rtol=1e-8, atol=1e-8, compile="off")
MATRIX = torch.tensor([[0.6, -0.9], [0.4, -0.3]], dtype=F64)


def flow(**options) -> NormalizingFlow:
    torch.manual_seed(0)
    return NormalizingFlow(2, **{"width": 8, "depth": 1, "solver": TIGHT, **options}).double()


def linear(end: float = 1.5) -> NormalizingFlow:
    """dz/dt = A z: x is normal, with covariance M M' of M = exp(-A T)."""
    made = flow(end=end)
    made.velocity = Linear(MATRIX)
    return made


def points(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(1))


def batch_of(x: torch.Tensor) -> Batch:
    seen = torch.ones(len(x), 1, x.shape[1], dtype=torch.bool)
    return Batch(torch.zeros(len(x), 1, dtype=F64), x[:, None], seen, seen, None, None, torch.arange(len(x)))


def normal(end: float = 1.5) -> torch.distributions.MultivariateNormal:
    inverse = torch.linalg.matrix_exp(-MATRIX * end)
    return torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), inverse @ inverse.T)


def test_of_a_linear_field_the_density_is_normal():
    x = points()
    torch.testing.assert_close(linear().log_density(x), normal().log_prob(x), rtol=1e-6, atol=1e-7)


def test_of_a_linear_field_samples_have_its_covariance():
    with torch.no_grad():
        found = linear().sample(40_000, seed=3)
    torch.testing.assert_close(found.T.cov(), normal().covariance_matrix, rtol=0.03, atol=0.03)


def test_a_density_integrates_to_one():
    """On a grid that holds all of it: the midpoint rule of a smooth density is exact but for the grid's ends."""
    side, cells = 16.0, 160
    steps = (torch.arange(cells, dtype=F64) + 0.5) * (side / cells) - side / 2
    with torch.no_grad():
        density = flow().log_density(torch.cartesian_prod(steps, steps)).exp()
    assert density.sum().item() * (side / cells) ** 2 == pytest.approx(1.0, abs=1e-5)


def test_samples_are_carried_back_from_normal_points():
    made = flow()
    with torch.no_grad():
        x = made.sample(50, seed=7)
        z = made.solve(x, torch.tensor([0.0, made.end], dtype=F64)).ys[:, -1]
    want = torch.randn(50, 2, generator=torch.Generator().manual_seed(7)).double()
    torch.testing.assert_close(z, want, rtol=1e-6, atol=1e-6)


def test_samples_are_a_function_of_their_seed():
    made = flow()
    with torch.no_grad():
        first, again, other = (made.sample(5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.dtype == F64


def test_the_prediction_is_the_log_density_of_each_row():
    made, x = flow(), points()
    output = made(batch_of(x))
    torch.testing.assert_close(output.prediction, made.log_density(x))
    assert output.prediction.shape == (6,) and len(output.solutions) == 1
    assert torch.equal(output.of(torch.tensor([2])).prediction, output.prediction[2:3])


def test_evaluation_is_exact_and_training_as_chosen():
    exact, estimated, x = flow(), flow(divergence=HutchinsonDivergence()), points()
    assert isinstance(exact.divergence, ExactDivergence)
    torch.testing.assert_close(estimated.eval().log_density(x), exact.log_density(x))
    estimated.train()
    found = torch.stack([estimated.log_density(x) for _ in range(2)])
    assert not torch.allclose(found[0], found[1])


def test_estimates_of_the_log_density_are_unbiased():
    made, x = flow(divergence=HutchinsonDivergence()), points(1)
    with torch.no_grad():
        exact = made.eval().log_density(x)
        found = made.train().log_density(x.expand(4000, 2))
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))


def test_gradients_of_the_likelihood_are_those_of_small_differences():
    made, x = flow(), points()
    weight = made.velocity.layers[0].linear.weight
    (gradient,) = torch.autograd.grad(made.log_density(x).mean(), weight)
    direction = torch.randn(weight.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    found = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step * direction
            found.append(made.log_density(x).mean())
    assert abs((gradient * direction).sum() - (found[0] - found[1]) / 2e-5) < 1e-6


def test_regularizers_prepare_the_likelihood_and_not_the_samples():
    made, x = flow(), points()
    chosen = {"kinetic": Kinetic(), "steer": EndTimeJitter(), "tpr": TrajectoryPolynomial()}
    with made.prepared(chosen) as preparation:
        output = made(batch_of(x))
        made.sample(3)
    assert {len(solved) for solved in preparation.solved.values()} == {1}
    assert output.prediction.shape == (6,) and output.prediction.isfinite().all()
    assert all(r.penalty(made, output, None, preparation.solved[n]).isfinite() for n, r in chosen.items())


def test_single_precision_meets_its_tolerance():
    solver, x = RungeKutta(rtol=1e-5, atol=1e-5, compile="off"), points(200)
    with torch.no_grad():
        rough = flow(solver=solver).float().log_density(x.float())
        torch.testing.assert_close(rough.double(), flow().log_density(x), rtol=1e-4, atol=1e-4)


def test_what_is_no_whole_vector_is_refused():
    batch = batch_of(points())
    gap = batch.mask.clone()
    gap[2, 0, 1] = False
    with pytest.raises(ValueError, match=r"expected whole vectors, .* with 1 missing values"):
        flow()(batch._replace(mask=gap))
    with pytest.raises(ValueError, match=r"expected whole vectors, .* got shape \(6, 3, 2\)"):
        flow()(Batch(*[None if x is None else x.repeat(1, 3, 1) if x.dim() == 3 else x for x in batch]))
    with pytest.raises(ValueError, match="expected a positive end"):
        NormalizingFlow(2, end=0.0)


def test_its_activation_is_that_of_its_field():
    assert isinstance(flow(activation=nn.Tanh).velocity.activation, nn.Tanh)
