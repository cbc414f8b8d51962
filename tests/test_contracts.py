"""Weights that decay, and what travels with data."""

import pytest
import torch

from ndeflow.contracts import DataSpec, ExponentialDecay, Gaussian, LinearDecay, LinearWarmup, Problem
from ndeflow.regularizers import GlobalError


def test_exponential_decay_meets_both_ends_and_the_geometric_middle():
    decay = ExponentialDecay(10.0, 0.1)
    assert [decay.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 1.0, 0.1])


def test_linear_decay_reaches_zero():
    assert [LinearDecay(2.0, 0.0).at(p) for p in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]


def test_exponential_decay_refuses_zero():
    for decay in (lambda: LinearDecay(-1.0, 0.0), lambda: LinearDecay(1.0, -0.1), lambda: LinearWarmup(0.5, -1.0)):
        with pytest.raises(ValueError, match="a finite weight of at least 0"):
            decay()
    with pytest.raises(ValueError, match="use LinearDecay"):
        ExponentialDecay(1.0, 0.0)


def test_spec_survives_a_round_trip_through_plain_values():
    spec = DataSpec(("a", "b"), (1.0, 2.0), (3.0, 4.0), 7.0, "date", ("x",), ("s",), (1.0,))
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_data_units_are_recovered_per_channel():
    spec = DataSpec(("a", "b"), (10.0, 20.0), (2.0, 4.0))
    torch.testing.assert_close(spec.to_data_units(torch.tensor([[1.0, -1.0]])), torch.tensor([[12.0, 16.0]]))


def test_probes_are_appended_in_order():
    problem = Problem(field=None, y0=torch.zeros(1, 1), ts=torch.tensor([0.0, 1.0]))
    twice = problem.with_probes(torch.tensor([0.5])).with_probes(torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(twice.probes, torch.tensor([0.5, 0.1, 0.2]))


def test_some_rows_of_a_normal_answer_keep_their_spread():
    output = Gaussian(torch.arange(6.0).view(3, 2, 1), std=torch.arange(6.0, 12.0).view(3, 2, 1))
    some = output.of(torch.tensor([2, 0]))
    assert some.prediction.flatten().tolist() == [4, 5, 0, 1] and some.std.flatten().tolist() == [10, 11, 6, 7]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_penalty_has_a_weight_that_is_none_of_a_reward(weight):
    with pytest.raises(ValueError, match="a finite weight of at least 0"):
        GlobalError(weight)
