"""python -m ndeflow.sample: ids, times and units of the input file in, predictions in the same terms out."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ndeflow.contracts import DataSpec
from ndeflow.data import DataModule, Files, LynxHare
from ndeflow.fields.known import LotkaVolterra
from ndeflow.load import load
from ndeflow.models import (
    CDEClassifier,
    HybridODE,
    NeuralScore,
    NormalizingFlow,
    ODEForecaster,
    ODEInterpolator,
    SDEForecaster,
)
from ndeflow.sample import main
from ndeflow.selection import length
from ndeflow.training.checkpoints import read_checkpoint, write_checkpoint

FORECAST = {"_target_": "ndeflow.tasks.Forecasting"}
SMALL = {"hidden": 4, "width": 4}


def save(folder: Path, model: nn.Module, data: DataModule | SimpleNamespace, config: dict[str, Any]) -> Path:
    """A run folder with `model` as it is, untrained."""
    name = f"ndeflow.models.{type(model).__name__}"
    config = {**config, "model": {"_target_": name, **config["model"]}}
    own = {"format": 1, "config": yaml.safe_dump(config), "spec": data.spec.to_dict()}
    weights = {f"model.{name}": w for name, w in model.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    write_checkpoint({"state_dict": weights, "ndeflow": own}, folder / "checkpoints" / "best.ckpt")
    return folder


def write(path: Path, header: str, *lines: str) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def day(k: int) -> str:
    return f"2024-01-{k + 1:02d}"


@pytest.fixture
def dated(tmp_path):
    """A forecaster of two channels on dates, whose forecast is one standard deviation above the mean everywhere."""
    lines = [f"s{i},{day(k)},{i + k},{10 * i - k}" for i in range(8) for k in range(4)]
    path = write(tmp_path / "train.csv", "id,time,x,y", *lines)
    data = Files(path)
    model = ODEForecaster(2, **SMALL)
    nn.init.zeros_(model.decoder.weight)
    nn.init.ones_(model.decoder.bias)
    config = {
        "model": {"channels": 2, **SMALL},
        "task": FORECAST,
        "data": {"_target_": "ndeflow.data.Files", "path": str(path), "target": None, "seen": None},
    }
    level = [m + s for m, s in zip(data.spec.mean, data.spec.std, strict=True)]
    return save(tmp_path / "run", model, data, config), level


def sample(tmp_path: Path, *arguments: str) -> list[dict[str, str]]:
    out = tmp_path / "out.csv"
    assert main([*arguments, f"out={out}"]) == 0
    with out.open() as file:
        return list(csv.DictReader(file))


def refused(capsys, *arguments: str) -> str:
    """The line of an exit status 2, after notes on the data."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    *notes, line = err.splitlines()
    assert out == "" and line.startswith("ndeflow: ") and all(note.startswith("ndeflow: note: ") for note in notes)
    return line


def test_a_forecast_has_the_times_and_units_of_the_file(dated, tmp_path, capsys):
    run, (x, y) = dated
    new = write(
        tmp_path / "new.csv",
        "y,id,time,note,x",  # another order, and a column of no concern
        f"1,b,{day(0)},u,2",
        f",b,{day(2)},v,",
        f",b,{day(5)}T12:00,w,",
        f"3,a,{day(1)},u,4",
        f",a,{day(3)},v,",
    )
    rows = sample(tmp_path, f"run={run}", f"data.path={new}")
    assert [(row["id"], row["time"]) for row in rows] == [("b", day(2)), ("b", f"{day(5)}T12:00"), ("a", day(3))]
    assert all(float(row["x"]) == pytest.approx(x) and float(row["y"]) == pytest.approx(y) for row in rows)
    wrote, cost = capsys.readouterr().out.splitlines()
    assert "3 rows of predictions for 2 series" in wrote
    assert cost.startswith("a batch of 2 takes ") and cost.endswith("in float32 with dopri5, rtol 0.0001, atol 0.0001")


def test_without_times_to_predict_the_model_reads_what_it_read_in_training(dated, tmp_path):
    new = write(tmp_path / "new.csv", "id,time,x,y", *[f"a,{day(k)},1,2" for k in range(3)])
    rows = sample(tmp_path, f"run={dated[0]}", f"data.path={new}")
    assert [row["time"] for row in rows] == [day(1), day(2)]


def test_ids_with_few_times_are_kept_refused_or_left_out_as_in_training_or_as_asked(dated, tmp_path, capsys):
    run, _ = dated
    new = write(tmp_path / "new.csv", "id,time,x,y", f"a,{day(0)},1,2", *[f"b,{day(k)},1,2" for k in range(2)])
    words = [f"run={run}", f"data.path={new}"]
    assert "expected at least 2; data.drop_short=true leaves out such ids" in refused(capsys, *words)
    assert "drop_short to be true or false, got 'yes'" in refused(capsys, *words, "data.drop_short=yes")
    assert "data.min_observations=N with a whole number" in refused(capsys, *words, "data.min_observations=few")
    assert {row["id"] for row in sample(tmp_path, *words, "data.drop_short=true")} == {"b"}
    assert "for 2 series" not in capsys.readouterr().out
    sample(tmp_path, *words, "data.min_observations=1")
    assert "for 2 series" in capsys.readouterr().out
    kept = read_checkpoint(run / "checkpoints" / "best.ckpt")
    config = yaml.safe_load(kept["ndeflow"]["config"])
    kept["ndeflow"]["config"] = yaml.safe_dump({**config, "data": {**config["data"], "min_observations": 1}})
    write_checkpoint(kept, run / "checkpoints" / "best.ckpt")
    sample(tmp_path, *words)
    assert "for 2 series" in capsys.readouterr().out


def test_its_own_test_split(dated, tmp_path):
    run, _ = dated
    rows = sample(tmp_path, f"run={run}")
    ids = {row["id"] for row in rows}
    data = Files(tmp_path / "train.csv")
    assert ids == {data.ids[i] for i in data.test.index.tolist()}
    assert [row["time"] for row in rows] == [day(1), day(2), day(3)] * len(ids)


def test_the_times_of_its_own_file_survive_dropped_observations(dated, tmp_path):
    run, _ = dated
    config = load_config(run)
    config["data"].update(drop=0.5, time_origin="file")
    data = Files(tmp_path / "train.csv", drop=0.5, time_origin="file")
    again = save(tmp_path / "again", load(run), data, config)
    rows = sample(tmp_path, f"run={again}")
    assert rows and {row["time"] for row in rows} <= {day(k) for k in range(4)}


def load_config(run: Path) -> dict[str, Any]:
    from ndeflow.load import read_run

    config = read_run(run).config
    config["model"].pop("_target_")
    return config


def test_built_in_data_forecast_their_last_years(tmp_path):
    torch.manual_seed(0)
    model = HybridODE(LotkaVolterra(), 2, width=4)
    config = {
        "model": {"known": {"_target_": "ndeflow.fields.known.LotkaVolterra"}, "channels": 2, "width": 4},
        "task": FORECAST,
        "data": {"_target_": "ndeflow.data.LynxHare"},
    }
    data = LynxHare()
    rows = sample(tmp_path, f"run={save(tmp_path / 'run', model, data, config)}")
    assert [row["time"] for row in rows] == ["1916", "1917", "1918", "1919", "1920"]
    expected = model.eval()(data.test).prediction[0, -1]
    assert [float(rows[-1][name]) for name in ("hare", "lynx")] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.fixture(params=[NormalizingFlow, NeuralScore])
def density(tmp_path, request):
    """A flow and a diffusion of two channels, untrained, in units of mean 10, 20 and standard deviation 2, 4."""
    torch.manual_seed(0)
    model = request.param(2, width=4, depth=1)
    config = {
        "model": {"channels": 2, "width": 4, "depth": 1},
        "task": {"_target_": "ndeflow.tasks.Task"},
        "data": {"_target_": "ndeflow.data.Rings"},
    }
    data = SimpleNamespace(spec=DataSpec(("x", "y"), (10.0, 20.0), (2.0, 4.0)))
    model.spec = data.spec
    return save(tmp_path / "run", model, data, config), model


def test_points_of_a_density_are_in_data_units(density, tmp_path, capsys):
    run, model = density
    rows = sample(tmp_path, f"run={run}", "count=7", "seed=3")
    with torch.no_grad():
        want = model.sample(7, seed=3).double() * torch.tensor([2.0, 4.0]) + torch.tensor([10.0, 20.0])
    found = torch.tensor([[float(row["x"]), float(row["y"])] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert list(rows[0]) == ["x", "y"] and "wrote 7 points" in capsys.readouterr().out
    assert len(sample(tmp_path, f"run={run}")) == 1000


def test_only_a_density_has_points(dated, capsys):
    assert "expected a density for count=3, got ODEForecaster" in refused(capsys, f"run={dated[0]}", "count=3")


def test_options_of_predictions_are_refused_for_a_density(density, tmp_path, capsys):
    run, _ = density
    for option in ("draws=3", f"data.path={tmp_path / 'new.csv'}"):
        assert "expected count=N points to draw from a density" in refused(capsys, f"run={run}", option)


def test_gaps_are_filled_by_an_interpolation(tmp_path):
    lines = [f"{i},{k},{i + k},{k * k}" for i in range(8) for k in range(4)]
    path = write(tmp_path / "train.csv", "id,time,x,y", *lines)
    hide = {"_target_": "ndeflow.data.Hidden", "fraction": 0.3}
    config = {
        "model": {"channels": 2, **SMALL},
        "task": {"_target_": "ndeflow.tasks.Interpolation"},
        "data": {"_target_": "ndeflow.data.Files", "path": str(path), "seen": hide},
    }
    run = save(tmp_path / "run", ODEInterpolator(2, **SMALL), Files(path), config)
    new = write(tmp_path / "new.csv", "id,time,x,y", "a,0,1,1", "a,1,,2", "a,2,,", "a,3,1,1")
    assert [row["time"] for row in sample(tmp_path, f"run={run}", f"data.path={new}")] == ["1", "2"]


@pytest.fixture
def classifier(tmp_path):
    lines = [f"{i};{k};{(i % 3) * k},5;{'c2 c10 c1'.split()[i % 3]}" for i in range(20) for k in range(4)]
    path = write(tmp_path / "train.csv", "id;time;x;kind", *lines)
    layout = {"target": "kind", "sep": ";", "decimal": ","}
    config = {
        "model": {"channels": 1, "outputs": 3, **SMALL},
        "task": {"_target_": "ndeflow.tasks.Classification"},
        "data": {"_target_": "ndeflow.data.Files", "path": str(path), "seen": None, **layout},
    }
    torch.manual_seed(1)
    return save(tmp_path / "run", CDEClassifier(1, 3, **SMALL), Files(path, **layout), config)


def test_classes_are_named_with_their_probabilities(classifier, tmp_path):
    new = write(tmp_path / "new.csv", "id;time;x", "q;0;1,5", "q;1;2", "p;0;1", "p;2;")
    rows = sample(tmp_path, f"run={classifier}", f"data.path={new}")
    assert [row["id"] for row in rows] == ["q", "p"]
    for row in rows:
        chances = {label: float(row[f"probability_{label}"]) for label in ("c1", "c2", "c10")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(chances, key=lambda label: chances[label])
    one_by_one = sample(tmp_path, f"run={classifier}", f"data.path={new}", "batch_size=1")
    assert [row["prediction"] for row in one_by_one] == [row["prediction"] for row in rows]


@pytest.mark.parametrize(("standardise", "expected"), [(True, 50001.5), (False, 1.0)])
def test_regressed_numbers_are_in_data_units(tmp_path, standardise, expected):
    """A prediction of 1 everywhere: of 1 standard deviation above the mean where the targets were standardised."""
    lines = [f"{i},{k},{k * i},{'train' if i < 8 else 'val test'.split()[i % 2]},{50000 + 1.5 * (-1) ** i}"
             for i in range(12) for k in range(4)]  # fmt: skip
    path = write(tmp_path / "train.csv", "id,time,x,split,level", *lines)
    layout = {"target": "level", "standardise": standardise}
    config = {
        "model": {"channels": 1, "outputs": 1, **SMALL},
        "task": {"_target_": "ndeflow.tasks.Regression"},
        "data": {"_target_": "ndeflow.data.Files", "path": str(path), "seen": None, **layout},
    }
    model = CDEClassifier(1, 1, **SMALL)
    nn.init.zeros_(model.readout.weight)
    nn.init.ones_(model.readout.bias)
    run = save(tmp_path / "run", model, Files(path, **layout), config)
    assert {float(row["prediction"]) for row in sample(tmp_path, f"run={run}")} == {expected}


def test_the_layout_of_a_new_file_may_differ(classifier, tmp_path):
    new = write(tmp_path / "new.csv", "name,time,x", "q,0,1.5", "q,1,2")
    arguments = ["data.sep=,", "data.decimal=.", "data.id_column=name"]
    assert len(sample(tmp_path, f"run={classifier}", f"data.path={new}", *arguments)) == 1


def test_draws_give_quantiles_and_repeat(dated, tmp_path, capsys):
    config = load_config(dated[0])
    model = SDEForecaster(2, **SMALL)
    run = save(tmp_path / "sde", model, Files(tmp_path / "train.csv"), config)
    new = write(tmp_path / "new.csv", "id,time,x,y", *[f"{i},{day(k)},1,2" for i in range(5) for k in range(3)])
    arguments = [f"run={run}", f"data.path={new}", "draws=20"]
    rows = sample(tmp_path, *arguments)
    assert list(rows[0]) == ["id", "time", "x", "x_q05", "x_q50", "x_q95", "y", "y_q05", "y_q50", "y_q95"]
    assert all(float(row["x_q05"]) < float(row["x_q50"]) < float(row["x_q95"]) for row in rows)
    again = sample(tmp_path, *arguments, "batch_size=2")
    assert [float(row["y_q95"]) for row in again] == pytest.approx([float(row["y_q95"]) for row in rows], rel=1e-4)
    assert rows != sample(tmp_path, *arguments, "seed=1")
    capsys.readouterr()
    assert "stochastic" in refused(capsys, f"run={dated[0]}", "draws=3")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,time,x", f"a,{day(0)},1", f"a,{day(1)},1"], "['y']"),
        (["id,time,x,y", "a,0,1,1", "a,1,,"], "times are of kind 'number', but the model was trained on 'date'"),
        (["id,time,x,y", f"a,{day(0)},,", f"a,{day(1)},,"], "got none of ['a']"),
        (["id,time,x,y", f"a,{day(0)},1,<2", f"a,{day(1)},,"], "line 2, column 'y': '<2' is not a number"),
        (["id,time,x,y", f"a,{day(0)},,", f"a,{day(1)},1,2"], "expected times to predict, got none"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(dated, tmp_path, capsys, lines, message):
    new = write(tmp_path / "new.csv", *lines)
    assert message in refused(capsys, f"run={dated[0]}", f"data.path={new}", f"out={tmp_path / 'out.csv'}")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "found nothing at nowhere"),
        (["data.path=x.csv"], "expected run=DIR"),
        (["run=x", "darws=3"], "did you mean draws"),
        (["run=x", "data.pth=3"], "did you mean data.path"),
        (["run=x", "new.csv"], "expected option=value, got 'new.csv'"),
        (["run=x", "draws=many"], "expected draws=N"),
        (["run=x", "device=abacus"], "got device=abacus; use device=cpu"),
        (["run=x", "data.path=same.csv", "out=./same.csv"], "expected another file to write to"),
    ],
)
def test_options_that_make_no_sense_are_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_usage(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    assert "data.path=FILE" in capsys.readouterr().out


def test_padding_is_no_time():
    ts, observed = torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0]), torch.tensor([True, False, False, False, False])
    assert length(ts, observed[:, None]) == 3
