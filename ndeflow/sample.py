"""python -m ndeflow.sample run=DIR [data.path=new.csv] [out=predictions.csv] [draws=N] [count=N] [device=cpu]

Predicts with a trained run: the series of a new file, or without one the run's own test split. Of a trained density
or diffusion it draws points.
"""

from __future__ import annotations

import csv
import difflib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ndeflow import predictions
from ndeflow.contracts import Output
from ndeflow.cost import PredictionCost
from ndeflow.data import DataWarning, MissingData, NewSeries
from ndeflow.data.loader import lengths, moved, take
from ndeflow.load import Run, read_run
from ndeflow.models.base import Model
from ndeflow.models.driven import PathDriven
from ndeflow.models.flow import NormalizingFlow
from ndeflow.models.score import ScoreModel
from ndeflow.models.trajectory import NeuralSDE
from ndeflow.numerics.field import SDE
from ndeflow.numerics.solution import SolveError
from ndeflow.runs import FAILED, MISSING, MISUSED, say
from ndeflow.selection import COLUMNS, to_predict
from ndeflow.training.files import write_atomically

USAGE = """python -m ndeflow.sample run=DIR [option=value ...]

run=DIR            the run folder, or a checkpoint file
data.path=FILE     new series (CSV or Parquet); without it, the test split of the run's own data.
                   A row without values asks for a prediction at its time. Where there is none, the model reads
                   what it read in training, and predicts the rest.
data.id_column, data.time_column, data.sep, data.decimal: how the file is written; as in training by default
data.min_observations, data.drop_short: ids with fewer times are refused, or left out; as in training by default
out=FILE           predictions.csv by default
draws=N            sampled paths of a stochastic model; as in training by default
count=N            points to draw where the run is a density's or a diffusion's, 1000
device=cpu|cuda    where to compute
batch_size=N       series predicted at once, 128
seed=N             of the sampled paths or points, 0
trust=mine.Model   classes of your own that the run is made of, comma-separated"""
KEYS = (
    "run",
    "out",
    "draws",
    "count",
    "device",
    "batch_size",
    "seed",
    "trust",
    "data.path",
    *(f"data.{c}" for c in COLUMNS),
)
POINTS = 1000


@dataclass(frozen=True)
class Request:
    """The command line, read."""

    run: Path
    path: Path | None
    columns: dict[str, Any]
    out: Path = Path("predictions.csv")
    draws: int | None = None
    count: int | None = None
    device: str = "cpu"
    batch_size: int = 128
    seed: int = 0
    trust: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` words. Raises ValueError naming the word and the nearest known key."""
    given: dict[str, str] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 3)
            raise ValueError(f"expected option=value, got {word!r}; {'did you mean ' if near else 'options: '}"
                             f"{', '.join(near or KEYS)}?")  # fmt: skip
        given[key] = value.strip("'\"")
    if not given.get("run"):
        raise ValueError("expected run=DIR, the folder of a trained run, got none")
    names = [name.strip(" '\"") for name in given.get("trust", "").strip("[]").split(",")]
    return Request(
        run=Path(given["run"]),
        path=Path(given["data.path"]) if "data.path" in given else None,
        columns={name: given[f"data.{name}"] for name in COLUMNS if f"data.{name}" in given} | short_ids(given),
        out=Path(given.get("out", "predictions.csv")),
        draws=count(given, "draws", least=1) if "draws" in given else None,
        count=count(given, "count", least=1) if "count" in given else None,
        device=given.get("device", "cpu"),
        batch_size=count(given, "batch_size", least=1) if "batch_size" in given else 128,
        seed=count(given, "seed", least=0) if "seed" in given else 0,
        trust=tuple(name for name in names if name),
    )


def count(given: dict[str, str], key: str, *, least: int) -> int:
    if not given[key].isdecimal() or int(given[key]) < least:
        raise ValueError(f"expected {key}=N with a whole number of at least {least}, got {given[key]!r}")
    return int(given[key])


def short_ids(given: dict[str, str]) -> dict[str, Any]:
    """What the words say of ids with few times. Raises ValueError for a wrong value."""
    found: dict[str, Any] = {}
    if "data.min_observations" in given:
        found["min_observations"] = count(given, "data.min_observations", least=1)
    if "data.drop_short" in given:
        if given["data.drop_short"] not in ("true", "false"):
            raise ValueError(f"expected data.drop_short to be true or false, got {given['data.drop_short']!r}")
        found["drop_short"] = given["data.drop_short"] == "true"
    return found


def sample(request: Request) -> str:
    """Predict and write the table; returns a line that says what was written, and one that says what it cost.

    Raises ValueError before any solve where run, file and options do not fit together.
    """
    device = available(request.device)
    if request.path is not None and request.path.resolve() == request.out.resolve():
        raise ValueError(f"expected another file to write to than data.path, got out={request.out}")
    run = read_run(request.run)
    model = run.model(request.trust).to(device)
    if isinstance(model, NormalizingFlow | ScoreModel):
        return sample_points(model, run, request)
    if request.count is not None:
        raise ValueError(f"expected a density for count={request.count}, got {type(model).__name__}; leave count out")
    if request.draws is not None:
        set_draws(model, request.draws)
    series = to_predict(run, request.path, request.columns, request.trust)
    forecast = str(run.config.get("task", {}).get("_target_", "")).endswith(".Forecasting")
    found: predictions.Rows = []
    cost = ""
    for part, output in predicted(model, series, request, device):
        found += predictions.rows(output, part.batch, run.spec, part.ids, part.times, forecast=forecast)
        cost = cost or str(PredictionCost.of(model, part.batch))
    if not found:
        raise ValueError(
            f"expected times to predict, got none in {request.path or 'the test split'}; add rows with the id and "
            "the time, and no values"
        )
    write_csv(request.out, found)
    wrote = f"wrote {len(found)} rows of predictions for {len(series.ids)} series to {request.out} ({run.checkpoint})"
    return f"{wrote}\n{cost}"


def sample_points(model: NormalizingFlow | ScoreModel, run: Run, request: Request) -> str:
    """Draw points of a trained density or diffusion and write them, in the data's units; returns one line that says so.

    Raises ValueError for options of predictions.
    """
    if request.path is not None or request.draws is not None:
        raise ValueError("expected count=N points to draw from a density, got data.path or draws; leave these out")
    wanted = POINTS if request.count is None else request.count
    with torch.no_grad():
        found = predictions.point_rows(model.sample(wanted, seed=request.seed), run.spec)
    write_csv(request.out, found)
    return f"wrote {wanted} points to {request.out} ({run.checkpoint})"


def available(device: str) -> torch.device:
    """Raises ValueError where the machine has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a device of this machine, got device={device}; use device=cpu") from error
    return torch.device(device)


def set_draws(model: Model, draws: int) -> None:
    """How many paths the model samples. Raises ValueError for a deterministic one."""
    if not isinstance(model, NeuralSDE | PathDriven) or not isinstance(model.dynamics, SDE):
        raise ValueError(f"expected a stochastic model for draws={draws}, got {type(model).__name__}; leave draws out")
    model.eval_draws = draws


def predicted(
    model: Model, series: NewSeries, request: Request, device: torch.device
) -> Iterator[tuple[NewSeries, Output]]:
    """The series, so many at once, and the model's output for them."""
    known = lengths(series.batch)
    for numbers in torch.arange(len(series.ids)).split(request.batch_size):
        batch = moved(take(series.batch, numbers, known), model, device)
        model.reseed(request.seed)
        with torch.no_grad():
            output = model(batch)
        chosen = numbers.tolist()
        yield NewSeries(batch, [series.ids[i] for i in chosen], [series.times[i] for i in chosen]), output


def write_csv(path: Path, rows: predictions.Rows) -> None:
    """Write the table as a whole, or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


@contextmanager
def told_once() -> Iterator[None]:
    """Inside, warnings about data are one plain line each on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", DataWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"ndeflow: note: {message}", file=sys.stderr)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, or with one line on stderr 1 failed, 2 wrong request, 3 data absent."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    try:
        with told_once():
            print(sample(parse(arguments)))
    except MissingData as error:
        return say(error, MISSING)
    except (ValueError, ModuleNotFoundError) as error:
        return say(error, MISUSED)
    except (SolveError, OSError) as error:
        return say(error, FAILED)
    except KeyboardInterrupt:
        return say("interrupted, nothing was written", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
