import pytest
import torch

from ndeflow.training.meter import Meter


def commit(meter: Meter, values: dict, maxima: dict | None = None) -> None:
    meter.add(values, maxima)
    meter.commit()


def test_means_and_maxima():
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        commit(meter, {"a": torch.tensor(value), "b": value}, {"m": torch.tensor(-value)})
    assert meter.flush() == {"a": 3.0, "b": 3.0, "m": -1.0}
    assert meter.flush() == {}


def test_a_name_is_averaged_over_the_times_it_was_added():
    meter = Meter()
    commit(meter, {"always": 1.0, "sometimes": 4.0})
    commit(meter, {"always": 3.0})
    meter.add({"always": 5.0})
    meter.add({"always": 7.0})
    meter.commit()
    assert meter.flush() == {"always": 4.0, "sometimes": 4.0}


def test_types_mix_and_graphs_are_dropped():
    meter = Meter()
    weight = torch.ones(1, requires_grad=True)
    commit(meter, {"f": weight.sum(), "d": torch.tensor(1 / 3, dtype=torch.float64), "i": torch.tensor(2), "x": 0.1})
    assert meter.peek() == {"f": 1.0, "d": 1 / 3, "i": 2.0, "x": 0.1}


def test_what_is_not_finite_shows():
    meter = Meter()
    commit(meter, {"a": torch.tensor(float("nan"))}, {"m": torch.tensor(float("nan"))})
    commit(meter, {"a": torch.tensor(1.0)}, {"m": torch.tensor(1.0)})
    assert all(value != value for value in meter.flush().values())


def test_an_unfinished_step_is_forgotten_and_never_saved():
    meter = Meter()
    commit(meter, {"a": 1.0})
    meter.add({"a": 100.0})
    state = meter.state_dict()
    meter.discard()
    commit(meter, {"a": 3.0})
    assert meter.flush() == {"a": 2.0}
    other = Meter()
    other.load_state_dict(state)
    assert other.flush() == {"a": 1.0}


def test_continuing_from_a_state_is_exact():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0))
    whole, first, second = Meter(), Meter(), Meter()
    for i, value in enumerate(values):
        commit(whole, {"a": value, "b": value}, {"m": value})
        commit(first if i < 17 else second, {"a": value, "b": value}, {"m": value})
        if i == 16:
            second.load_state_dict(first.state_dict())
    assert second.flush() == whole.flush()


def test_processes_are_combined():
    meter = Meter()
    commit(meter, {"a": 2.0}, {"m": 5.0})
    found = meter.flush(lambda values, how: values / 2 if how == "mean" else values + 1)
    assert found == {"a": 1.0, "m": 6.0}


def test_only_single_numbers_are_taken():
    with pytest.raises(ValueError, match=r"expected one number for 'a', got a tensor of shape \(2,\)"):
        Meter().add({"a": torch.ones(2)})
