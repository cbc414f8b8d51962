"""Windows of the monthly sea surface temperature."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ndeflow.data import ElNino, Hidden, MissingData


@pytest.mark.parametrize(
    ("lead", "climatology", "persisted", "damped"),
    [(1, 1.230, 0.495, 0.484), (3, 1.236, 0.977, 0.897), (6, 1.242, 1.297, 1.111)],
)
def test_references(lead: int, climatology: float, persisted: float, damped: float) -> None:
    assert ElNino(lead=lead).references() == pytest.approx({
        "reference/climatology_rmse": climatology,
        "reference/persisted_anomaly_rmse": persisted,
        "reference/damped_anomaly_rmse": damped,
    }, abs=6e-4)  # fmt: skip


def test_windows_are_scored_at_the_lead_alone() -> None:
    data = ElNino(context=12, lead=3, standardise=False)
    months = data.months().float()
    assert data.train.ts[0].tolist() == [*range(12), 14]
    assert data.train.scored.any(dim=-1).sum(dim=1).eq(1).all() and data.train.scored[:, -1].all()
    torch.testing.assert_close(data.train.ys[5, :, 0], months[[*range(5, 17), 19]])
    assert data.train.inputs is not None
    angle = 2 * math.pi * (19 % 12) / 12
    torch.testing.assert_close(data.train.inputs[5], torch.tensor([math.sin(angle), math.cos(angle)]))


def test_splits_do_not_share_scored_months() -> None:
    data = ElNino(context=24, lead=3, standardise=False)
    months = data.months().float()
    sizes = [len(batch.index) for batch in (data.train, data.val, data.test)]
    assert sizes == [36 * 12 - 24 - 2, 9 * 12 - 3, 16 * 12 - 3]
    assert data.train.ys[-1, -1, 0] == months[36 * 12 - 1]
    assert data.val.ys[0, -1, 0] == months[36 * 12 + 3] and data.val.ys[-1, -1, 0] == months[45 * 12 - 1]
    assert data.test.ys[0, -1, 0] == months[45 * 12 + 3] and data.test.ys[-1, -1, 0] == months[-1]


def test_with_months_hidden_at_random_windows_lie_in_the_years_of_their_split() -> None:
    data = ElNino(context=24, lead=1, seen=Hidden(0.5), standardise=False)
    months = data.months().float()
    for batch, first, end in ((data.train, 0, 36), (data.val, 36, 45), (data.test, 45, 61)):
        assert len(batch.index) == (end - first) * 12 - 24
        torch.testing.assert_close(batch.ys[0, :, 0], months[first * 12 : first * 12 + 25])
        torch.testing.assert_close(batch.ys[-1, :, 0], months[end * 12 - 25 : end * 12])
        assert batch.ts[0].tolist() == [*range(25)]
        assert 0.4 < batch.scored.float().mean() < 0.6


@pytest.mark.parametrize("time_scale", [1.0, 12.0])
def test_the_linear_reference_is_the_conditional_gaussian(time_scale: float) -> None:
    data = ElNino(context=12, lead=2, train_years=59, seen=Hidden(0.5), standardise=False, time_scale=time_scale)
    months, known, batch = data.months(), 59 * 12, data.test
    anomaly = months - months[:known].unflatten(0, (-1, 12)).mean(dim=0).repeat(61)
    variance = anomaly[:known].square().mean()
    phi = (anomaly[1:known] * anomaly[: known - 1]).mean() / variance
    places = torch.tensor([*range(12), 13])
    covariance = variance * phi ** (places[:, None] - places).abs()
    joint, count = 0.0, 0
    for row in range(len(batch.index)):  # each hidden month alone with all seen ones: log p(x, seen) - log p(seen)
        x, seen = anomaly[known + row + places], batch.seen[row, :, 0]
        for place in batch.scored[row, :, 0].nonzero().flatten().tolist():
            both = [*seen.nonzero().flatten().tolist(), place]
            joint += log_density(x[both], covariance[both][:, both]) - log_density(x[seen], covariance[seen][:, seen])
            count += 1
    found = data.references()
    assert found["reference/linear_log_likelihood"] == pytest.approx(joint / count, abs=1e-8)
    assert 0.1 < found["reference/linear_rmse"] < 1.0


def log_density(x: Tensor, covariance: Tensor) -> float:
    return torch.distributions.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x).item()


def test_the_years_of_validation_must_hold_a_window() -> None:
    with pytest.raises(ValueError, match="expected data.context .* of at most the 108 validation months"):
        ElNino(context=108, lead=1, seen=Hidden(0.5)).setup()


def test_climatology_is_the_score_of_the_windows_themselves() -> None:
    data = ElNino(standardise=False)
    climate = data.months()[: 45 * 12].unflatten(0, (-1, 12)).mean(dim=0)
    months = torch.arange(45 * 12 + 3, 61 * 12) % 12
    error = data.test.ys[:, -1, 0].double() - climate[months]
    assert float(error.square().mean().sqrt()) == pytest.approx(1.236, abs=6e-4)


def test_an_absent_file_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingData, match="run: pip install statsmodels"):
        ElNino(path=tmp_path / "elnino.csv").setup()
    monkeypatch.setattr("ndeflow.data.notices.find_spec", lambda name: None)
    with pytest.raises(MissingData, match="run: pip install statsmodels"):
        ElNino().setup()


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("year,jan\n1950,1\n1951,2\n")
    with pytest.raises(ValueError, match="expected a year and 12 months a row"):
        ElNino(path=path).setup()


def test_a_cell_that_is_no_number_is_not_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "months.csv"
    header = ",".join(["year", *(f"m{k}" for k in range(12))])
    rows = [",".join([str(year), *["", "NA", *["1.5"] * 10]]) for year in range(1950, 2011)]
    path.write_text("\n".join([header, *rows]))
    assert ElNino(path=path).months().isnan().sum() == 61 * 2
    path.write_text("\n".join([header, *rows, rows[-1].replace("NA", "x")]))
    with pytest.raises(ValueError, match="months.csv: line 63, column 'm1': 'x' is not a number"):
        ElNino(path=path).months()


@pytest.mark.parametrize("options", [{"lead": 0}, {"validation_years": 45}, {"train_years": 61}, {"context": 500}])
def test_options_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ElNino(**options).setup()
