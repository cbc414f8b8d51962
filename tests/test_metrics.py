"""Scores against closed forms; averages against the whole split at once."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp, norm

from ndeflow.metrics import (
    Averages,
    Weighted,
    crps,
    energy_score,
    gaussian_nll,
    kolmogorov,
    lagged_correlation,
    moments,
    sliced_wasserstein,
)
from ndeflow.numerics.draws import coverage, quantiles


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_crps(mean: float, std: float, y: float) -> float:
    """Gneiting & Raftery 2007, eq. 20."""
    z = (y - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("y", [-2.0, 0.3, 1.5])
def test_crps_of_a_gaussian(y):
    draws = 0.7 + 1.3 * normal(200_000)
    assert crps(draws, torch.tensor(y)).item() == pytest.approx(gaussian_crps(0.7, 1.3, y), abs=0.01)


def test_crps_is_unbiased_with_two_draws():
    scores = crps(normal(2, 400_000), torch.tensor(0.3))
    assert scores.mean().item() == pytest.approx(gaussian_crps(0.0, 1.0, 0.3), abs=4 * scores.std().item() / 632)


def test_crps_is_its_definition_and_differentiable():
    draws, ys = normal(7, 3, 2), normal(3, 2, seed=1)
    pairs = sum((draws[s] - draws[r]).abs() for s in range(7) for r in range(s))
    torch.testing.assert_close(crps(draws, ys), (draws - ys).abs().mean(0) - pairs / 42)
    assert torch.autograd.gradcheck(crps, (draws.requires_grad_(), ys.requires_grad_()))


def test_energy_score_of_one_channel_is_the_crps():
    draws, ys = normal(9, 4, 1), normal(4, 1, seed=1)
    torch.testing.assert_close(energy_score(draws, ys), crps(draws, ys).squeeze(-1))


def test_energy_score_of_a_gaussian_vector():
    # E|x| of a standard normal pair is sqrt(pi / 2); the difference of two has standard deviation sqrt(2)
    expected = math.sqrt(math.pi / 2) * (1 - math.sqrt(2) / 2)
    score = energy_score(normal(400, 40, 2), torch.zeros(2)).mean()
    assert score.item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("score", [crps, energy_score])
def test_one_draw_is_refused(score):
    with pytest.raises(ValueError, match="expected at least two draws"):
        score(torch.zeros(1, 3, 2), torch.zeros(3, 2))


def test_quantiles_of_an_exact_grid():
    draws = torch.arange(1.0, 20.0)[torch.randperm(19)]  # p (S + 1) = 20 p
    assert quantiles(draws, [0.0, 0.05, 0.5, 0.525, 0.95, 1.0]).tolist() == pytest.approx([1, 1, 10, 10.5, 19, 19])


@pytest.mark.parametrize(("count", "level"), [(19, 0.9), (39, 0.9), (39, 0.5)])
def test_coverage_of_draws_from_the_truth_is_nominal(count, level):
    covered = coverage(normal(count, 100_000), normal(100_000, seed=1), level)
    assert covered.mean().item() == pytest.approx(level, abs=0.005)


def test_coverage_of_a_gaussian_forecast_that_is_too_narrow():
    covered = coverage(normal(199, 20_000) / 2, normal(20_000, seed=1), 0.9)
    assert covered.mean().item() == pytest.approx(2 * norm.cdf(norm.ppf(0.95) / 2) - 1, abs=0.015)


def test_gaussian_nll():
    mean, std, y = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 1.3, -0.4))
    assert gaussian_nll(mean, std, y).item() == pytest.approx(-norm.logpdf(-0.4, 0.7, 1.3))


def test_averages_do_not_depend_on_the_batches():
    values, weights = normal(100, 3), (normal(100, 1, seed=1) > 0).double()
    weights[:40] = 0.0
    averages = Averages()
    for part in torch.arange(100).split(17):
        averages.add({"mean": Weighted(values[part], weights[part]), "plain": values[part]})
        averages.add({"rms": Weighted(values[part].square(), weights[part].bool(), root=True)})
    kept = values[weights[:, 0] > 0]
    expected = {"mean": kept.mean().item(), "plain": values.mean().item(), "rms": kept.square().mean().sqrt().item()}
    assert averages.compute() == pytest.approx(expected, rel=1e-12)
    assert list(averages.compute()) == ["mean", "plain", "rms"]


def test_what_has_no_weight_never_enters():
    averages = Averages()
    averages.add({"a": Weighted(torch.tensor([math.nan, 2.0, math.inf]), torch.tensor([0.0, 0.5, 0.0]))})
    assert averages.compute() == {"a": 2.0}


def test_nothing_to_average_and_what_is_not_finite_show_as_nan():
    averages = Averages()
    averages.add({"none": Weighted(torch.ones(3), torch.zeros(3), root=True), "empty": torch.ones(0)})
    averages.add({"broken": torch.tensor([1.0, math.nan])})
    assert all(math.isnan(value) for value in averages.compute().values())


def test_sums_are_wide():
    averages = Averages()
    averages.add({"a": torch.tensor([1e8])})
    for _ in range(999):
        averages.add({"a": torch.ones(1)})
    assert averages.compute()["a"] == (1e8 + 999) / 1000


def test_a_metric_cannot_change_its_kind():
    averages = Averages()
    averages.add({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="same `root`"):
        averages.add({"a": Weighted(torch.ones(1), root=True)})


class TwoProcesses:
    """A stand-in for a strategy: this process and another that holds `other`."""

    root_device = torch.device("cpu")

    def __init__(self, other: torch.Tensor) -> None:
        self.other = other

    def reduce(self, tensor, group=None, reduce_op="mean"):
        assert reduce_op == "sum"
        return tensor + self.other


def test_processes_are_averaged_by_their_weights():
    averages = Averages()
    averages.add({"b": Weighted(torch.tensor([9.0, 9.0]), root=True), "a": torch.tensor([1.0])})
    other = torch.tensor([[5.0, 3.0], [14.0, 6.0]], dtype=torch.float64)  # sorted by name: a, then b
    assert averages.reduced(TwoProcesses(other)).compute() == {"b": 2.0, "a": 1.5}
    assert averages.compute() == {"b": 3.0, "a": 1.0}
    assert Averages().reduced(TwoProcesses(other)).compute() == {}


def test_moments_are_those_of_what_is_marked():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, 1, dtype=torch.float64, generator=generator)
    weights = torch.ones(6, 3, 1, dtype=torch.float64)
    weights[4:, 1], weights[1:, 2] = 0, 0
    x[:, 4:, 1] = math.nan
    mean, variance = moments(x, weights)
    for t, rows in enumerate((6, 4, 1)):
        torch.testing.assert_close(mean[t], x[:, :rows, t].mean(dim=(0, 1)))
        torch.testing.assert_close(variance[t], x[:, :rows, t].flatten(0, 1).var(dim=0))
    alone, nothing = moments(x[:1], weights)
    assert torch.equal(alone[2], x[0, 0, 2]) and nothing[2] == 0


def test_kolmogorov_is_the_greatest_difference_of_distribution_functions():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, generator=generator, dtype=torch.float64)
    b = 0.5 + torch.randn(45, generator=generator, dtype=torch.float64)
    assert kolmogorov(a, b).item() == pytest.approx(ks_2samp(a.numpy(), b.numpy()).statistic)
    assert kolmogorov(a, a) == 0 and kolmogorov(a, a + 100) == 1


def test_lagged_correlation_of_an_autoregression_decays_by_its_coefficient():
    generator = torch.Generator().manual_seed(0)
    noise, x = torch.randn(80, 4000, generator=generator, dtype=torch.float64), [torch.zeros(4000).double()]
    for e in noise:
        x.append(0.7 * x[-1] + e)
    found = lagged_correlation(torch.stack(x[30:], dim=1), torch.stack(x[30:], dim=1), 3)
    torch.testing.assert_close(found, 0.7 ** torch.arange(1.0, 4.0).double(), rtol=0, atol=0.02)


def test_lagged_correlation_looks_from_the_first_to_the_later_second():
    first = torch.randn(500, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    second = torch.cat([torch.zeros(500, 2).double(), -first[:, :-2]], dim=1)  # the first, two times ago
    found = lagged_correlation(first, second, 3)
    assert found[1] < -0.75 and found[[0, 2]].abs().max() < 0.1
    with pytest.raises(ValueError, match="expected lags from 1 to 5"):
        lagged_correlation(first, second, 6)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    found = sliced_wasserstein(x, (x + shift).flip(0), directions=20_000)
    assert found.item() == pytest.approx(3 / 3**0.5, rel=0.02)
    assert sliced_wasserstein(x, x.flip(0)) < 1e-15  # rows are multiplied in other places, and so rounded otherwise


def test_sliced_wasserstein_on_a_line_is_that_of_sorted_values():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    rows, columns = linear_sum_assignment((a[:, None] - b).square().numpy())
    want = (a[rows] - b[columns]).square().mean().sqrt()
    torch.testing.assert_close(sliced_wasserstein(a[:, None], b[:, None]), want)
    torch.testing.assert_close(sliced_wasserstein(a[:, None].float(), b[:, None].float()), want.float())
    with pytest.raises(ValueError, match="expected two samples of one shape"):
        sliced_wasserstein(a[:5, None], b[:4, None])
