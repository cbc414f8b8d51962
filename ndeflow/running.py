"""One run: from a request to a trained and tested model."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ndeflow import outcome, resources, runs
from ndeflow.checks import check_monitor, check_same, check_trainer
from ndeflow.contracts import DataSpec
from ndeflow.cost import PredictionCost
from ndeflow.data import DataModule, MissingData
from ndeflow.data.loader import moved
from ndeflow.load import read_run
from ndeflow.preview import preview
from ndeflow.request import Request
from ndeflow.resources import ConfigError
from ndeflow.runs import FAILED, MISSING, MISUSED, Run, first_process, say
from ndeflow.tasks import Task
from ndeflow.training import provenance
from ndeflow.training.assembly import Assembly, Settings, assemble
from ndeflow.training.checkpoints import KEY, CheckpointError, read_checkpoint
from ndeflow.training.files import write_atomically
from ndeflow.training.signals import Interrupted


def run(request: Request) -> int:
    """Carry out a request; the exit status."""
    warnings.showwarning = _warn
    try:
        prepared = resume(request, request.resumed) if request.resumed else prepare(request.config)
        return 0 if prepared is None else train(prepared)
    except MissingData as error:
        return say(error, MISSING)
    except (ConfigError, CheckpointError) as error:
        return say(error, MISUSED)
    except Exception as error:
        return say(outcome.described(error), FAILED)


def prepare(config: Any) -> Run | None:
    """A new run: its data, folder, task, in the order in which they fail cheaply; None where only a check was asked."""
    check_trainer(config)
    check_monitor(config)
    data = make_data(config)
    if config.check:
        plain = resources.resolved(config)
        print(preview(make_task(plain, data), data, plain["trainer"]))
        return None
    folder = runs.new_folder(config.name, config.run_dir)
    try:
        resources.update(config, run_dir=str(folder))
        plain = resources.resolved(config)
        task = make_task(plain, data)
        if plain["init_from"]:
            start_from(task, plain["init_from"])
    except BaseException:
        runs.abandon(folder)
        raise
    return Run(folder, plain, data, task)


def resume(request: Request, folder: Path) -> Run | None:
    """The run in `folder`, to go on with; where it has ended, its results are shown again, None."""
    config, last = request.config, folder / "checkpoints" / "last.ckpt"
    if runs.read_json(folder / "run.json").get("status") == "finished" and not request.changed:
        print(f"{folder} has ended already (trainer.max_epochs=... trains it further)")
        print(outcome.summary(folder, resources.resolved(config)))
        return None
    runs.share(folder)
    known = read_checkpoint(last)[KEY]["spec"] if last.exists() else None
    if known is None:
        (folder / "metrics.csv").unlink(missing_ok=True)
    check_trainer(config)
    data = make_data(config)
    if known is not None:
        check_same(DataSpec.from_dict(known), data.spec, folder)
    resources.update(config, run_dir=str(folder))
    plain = resources.resolved(config)
    task = make_task(plain, data)
    if plain["init_from"] and not last.exists():
        start_from(task, plain["init_from"])
    return Run(folder, plain, data, task, last if last.exists() else None)


def train(run: Run) -> int:
    """Fit, test, draw and record; the exit status."""
    versions, commit = provenance.versions(), provenance.git_commit()
    trackers = make_trackers(run, {"versions": versions, "commit": commit})
    record = runs.Record(run.folder, recipe=run.config["name"], versions=versions, commit=commit)
    assembly = assembled(run, trackers)
    if first_process():
        write_atomically(run.folder / "config.yaml", resources.to_yaml(run.config).encode())
        record.write("running")
    gc.freeze()  # what is there by now stays: looking through it again and again costs a tenth of a second each time
    try:
        assembly.trainer.fit(run.task, datamodule=run.data, ckpt_path=run.last)
        results = test(run, assembly)
        cost = predicting(run)
        others, words = compared(run)
        results |= {**cost.results(), **others}
        outcome.completed(run, assembly, record, results, {"prediction": str(cost), **words})
        return 0
    except Interrupted as stop:
        return outcome.interrupted(run, assembly, record, stop)
    except Exception as error:
        return outcome.failed(run, assembly, record, error)


def assembled(run: Run, trackers: Sequence[Any] = ()) -> Assembly:
    """The Trainer that a run's configuration describes."""
    settings = Settings(**{name: run.config[name] for name in Settings.__dataclass_fields__})
    options = {name: value for name, value in run.config["trainer"].items() if name != "threads"}
    identity = {"config": resources.to_yaml(run.config), "spec": run.data.spec.to_dict()}
    return assemble(run.folder, settings, identity, trackers, **options)


def test(run: Run, assembly: Assembly) -> dict[str, float]:
    """Metrics on the test split, and what training cost.

    Of the best weights; the last where none were validated.
    """
    best = run.folder / "checkpoints" / "best.ckpt"
    if best.exists():
        run.task.load_state_dict(read_checkpoint(best)["state_dict"])
    assembly.trainer.test(run.task, datamodule=run.data, verbose=False)
    found = {k: float(v) for k, v in assembly.trainer.callback_metrics.items() if k.startswith("test/")}
    if best.exists() and assembly.best.best_model_score is not None:
        found[f"best/{run.config['monitor']}"] = float(assembly.best.best_model_score)
    if not first_process():
        return found
    assembly.table.save()
    return {**found, **training_cost(assembly.table.rows), **assembly.switching.results()}


def predicting(run: Run) -> PredictionCost:
    """What it costs to predict the first batch of the test split, with the weights that were tested."""
    batch = next(iter(run.data.test_dataloader()))
    return PredictionCost.of(run.task.model, moved(batch, run.task.model, run.task.device))


def training_cost(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean evaluations a training step, seconds a step and those of them outside training, from the rows of the table.

    A row of training has the means over the steps since the one before.
    """
    wanted = {"train/nfe": "train/nfe", "train/backward_nfe": "train/backward_nfe",
              "train/seconds_per_step": "time/seconds_per_step",
              "train/seconds_outside": "time/seconds_outside"}  # fmt: skip
    trained = [row for row in rows if "train/learning_rate" in row]
    steps = np.diff([row["step"] for row in trained], prepend=0.0)
    found = {}
    for name, key in wanted.items():
        values = np.array([row.get(key, math.nan) for row in trained])
        known = np.isfinite(values)
        if steps[known].any():
            found[name] = float(np.average(values[known], weights=steps[known]))
    return found


def compared(run: Run) -> tuple[dict[str, float], dict[str, str]]:
    """The references; where they fail, none, and the words that say why: what was trained is not lost with them."""
    if not first_process():
        return {}, {}
    try:
        return references(run), {}
    except Exception as error:
        reason = f"what other methods reach could not be found: {outcome.described(error)}"
        say(f"note: {reason}", FAILED)
        return {}, {"references": reason}


def references(run: Run) -> dict[str, float]:
    """Scores of other methods: those the data know, and those of a `references.py` beside the recipe.

    The configuration's `references` may name another recipe, beside which it lies.
    """
    chosen = run.config["references"]
    if not chosen:
        return {}
    known = run.data.references()
    recipe = resources.recipes().get(run.config["name"] if chosen is True else chosen)
    beside = recipe.with_name("references.py") if recipe and recipe.stem == "recipe" else None
    if beside is None or not beside.exists():
        return known
    spec = spec_from_file_location(f"{beside.parent.name}_references", beside)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return {**known, **module.references(run.data, run.config["seed"])}


def make_data(config: Any) -> DataModule:
    """The data module, set up; its sizes go into the configuration."""
    data = resources.instantiate(resources.resolved(config.data))
    if not isinstance(data, DataModule):
        raise ConfigError(f"expected an ndeflow.DataModule as data, got {type(data).__name__}")
    data.setup()
    resources.update(config, sizes=data.sizes)
    return data


def make_task(config: dict[str, Any], data: DataModule) -> Task:
    """The task with freshly seeded weights."""
    if config["trainer"]["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("expected a GPU for trainer=gpu, found none; use trainer=cpu")
    torch.set_num_threads(config["trainer"]["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(config["seed"])
    task = resources.instantiate(config["task"])
    if not isinstance(task, Task):
        raise ConfigError(f"expected an ndeflow.Task as task, got {type(task).__name__}")
    task.spec = data.spec
    return task


def start_from(task: Task, run: str) -> None:
    """The best weights of another run of the same model."""
    found = read_run(Path(run).expanduser())
    try:
        task.load_state_dict(found.weights)
    except RuntimeError as error:
        reason = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise ConfigError(
            f"init_from: the weights in {found.checkpoint} are not of this model ({reason}); give the model the "
            "sizes of that run"
        ) from error


def make_trackers(run: Run, facts: dict[str, Any]) -> list[Any]:
    """The tracker that the configuration names, if any; the configuration and `facts` arrive there."""
    node = run.config["logger"]
    if not node:
        return []
    wandb = node.get("_target_", "").endswith("wandb_logger")
    tracker = resources.instantiate(node, **({"run_dir": run.folder} if wandb else {}))
    tracker.log_hyperparams({**run.config, **facts})
    return [tracker]


def _warn(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """A warning as one line, by the first process, without a line of source."""
    say(f"note: {message}", 0)
