"""One run: from a configuration to a trained, tested, drawn and recorded model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from ndeflow import claims, resources, runs
from ndeflow.data import DataModule, MissingData
from ndeflow.load import read_run
from ndeflow.numerics.solution import SolveError
from ndeflow.preview import preview
from ndeflow.resources import ConfigError
from ndeflow.tasks import Task
from ndeflow.training import provenance
from ndeflow.training.assembly import Assembly, Settings, assemble
from ndeflow.training.checkpoints import CheckpointError, read_checkpoint
from ndeflow.training.figures import run_figures, task_figures, write_figures
from ndeflow.training.files import write_atomically
from ndeflow.training.signals import Interrupted
from ndeflow.training.table import read_table
from ndeflow.training.trackers import finish

FAILED, USAGE, MISSING = 1, 2, 3
Plain = dict[str, Any]


@dataclass
class Run:
    """A run about to be trained: where it lies, its resolved configuration, its data and its task."""

    folder: Path
    config: Plain
    data: DataModule
    task: Task
    resumed: bool


def run(words: Sequence[str]) -> int:
    """Carry out a command line without sweeps; the exit status."""
    try:
        prepared = prepare(words)
        return 0 if prepared is None else train(prepared)
    except MissingData as error:
        return say(error, MISSING)
    except (ConfigError, CheckpointError) as error:
        return say(error, USAGE)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        return say(error, FAILED)


def prepare(words: Sequence[str]) -> Run | None:
    """Everything before the training, cheap failures first; None where nothing is left to do."""
    given = dict(word.partition("=")[::2] for word in words)
    if "resume" in given:
        return resume(Path(given["resume"]), [word for word in words if not word.startswith("resume=")])
    config = resources.compose(words)
    checked(config)
    name = config.name or recipe_name(given)
    resources.update(config, name=name)
    data = make_data(config)
    if config.check:
        resources.update(config, run_dir="(none)")
        plain = resources.resolved(config)
        task, _ = make_task(plain, data)
        print(preview(task, data, plain["trainer"]))
        return None
    folder = runs.new_folder(name, config.run_dir)
    resources.update(config, run_dir=str(folder))
    plain = resources.resolved(config)
    task, text = make_task(plain, data)
    if plain["init_from"]:
        start_from(task, plain["init_from"])
    if first_process():
        write_atomically(folder / "config.yaml", text.encode())
    return Run(folder, plain, data, task, resumed=False)


def resume(folder: Path, words: Sequence[str]) -> Run | None:
    """The run in `folder`, to go on with; where it has ended, only its results are shown again."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"expected a run folder to resume, found no config.yaml in {folder}; see the folder runs/")
    recipe = next((word.removeprefix("recipe=") for word in words if word.startswith("recipe=")), None)
    config = resources.read_config(folder / "config.yaml", [w for w in words if not w.startswith("recipe=")])
    if recipe is not None and recipe_name({"recipe": recipe}) != config.name:
        raise ConfigError(f"expected a run of recipe {recipe}, got one of {config.name}: {folder}; resume it as such")
    checked(config)
    if runs.read_json(folder / "run.json").get("status") == "finished" and not words:
        print(f"{folder} has ended already; its results:\n{summary(folder, resources.resolved(config))}")
        return None
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        read_checkpoint(last)
    os.environ[runs.CHILD] = str(folder)
    data = make_data(config)
    resources.update(config, run_dir=str(folder))
    plain = resources.resolved(config)
    task, _ = make_task(plain, data)
    if not last.exists():
        (folder / "metrics.csv").unlink(missing_ok=True)
    return Run(folder, plain, data, task, resumed=last.exists())


def train(run: Run) -> int:
    """Fit, test, draw and record; the exit status."""
    record = runs.Record(
        run.folder, recipe=run.config["name"], versions=provenance.versions(), commit=provenance.git_commit()
    )
    trackers = make_trackers(run)
    identity = {"config": resources.to_yaml(run.config), "spec": run.data.spec.to_dict()}
    settings = Settings(**{name: run.config[name] for name in Settings.__dataclass_fields__})
    options = {name: value for name, value in run.config["trainer"].items() if name != "threads"}
    assembly = assemble(run.folder, settings, identity, trackers, **options)
    if first_process():
        record.write("running")
    last = run.folder / "checkpoints" / "last.ckpt"
    try:
        assembly.trainer.fit(run.task, datamodule=run.data, ckpt_path=last if run.resumed else None)
        results = test(run, assembly)
    except Interrupted as stop:
        return interrupted(run, assembly, record, stop)
    except (SolveError, FloatingPointError, ValueError, OSError, RuntimeError) as error:
        return failed(run, assembly, record, error)
    if first_process():
        complete(run, assembly, record, results)
    return 0


def test(run: Run, assembly: Assembly) -> dict[str, float]:
    """Metrics of the best weights on the test split, and what other methods reach there."""
    best = run.folder / "checkpoints" / "best.ckpt"
    if best.exists():
        run.task.load_state_dict(read_checkpoint(best)["state_dict"])
    assembly.table.save()
    assembly.trainer.test(run.task, datamodule=run.data, verbose=False)
    found = {k: float(v) for k, v in assembly.trainer.callback_metrics.items() if k.startswith("test/")}
    if best.exists() and assembly.best.best_model_score is not None:
        found[f"best/{run.config['monitor']}"] = float(assembly.best.best_model_score)
    return {**found, **training_cost(run.folder), **references(run)}


def training_cost(folder: Path) -> dict[str, float]:
    """Mean evaluations a training step and seconds a step, from the table."""
    rows = read_table(folder / "metrics.csv")
    wanted = {"train/nfe": "train/nfe", "train/backward_nfe": "train/backward_nfe",
              "train/seconds_per_step": "time/seconds_per_step"}  # fmt: skip
    values = {name: [row[column] for row in rows if column in row] for name, column in wanted.items()}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def references(run: Run) -> dict[str, float]:
    """Scores of other methods: those the data know, and those of a `references.py` beside the recipe."""
    known = run.data.references()
    recipe = resources.recipes().get(run.config["name"])
    beside = recipe.with_name("references.py") if recipe and recipe.stem == "recipe" else None
    if beside is None or not beside.exists():
        return known
    spec = spec_from_file_location(f"{run.config['name']}_references", beside)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return {**known, **module.references(run.data, run.config["seed"])}


def complete(run: Run, assembly: Assembly, record: runs.Record, results: dict[str, float]) -> None:
    """Results, figures and the summary of a run that has ended."""
    runs.write_json(run.folder / "results.json", results)
    write_figures(all_figures(run), run.folder / "plots", assembly.trainer.loggers)
    for logger in assembly.trainer.loggers:
        logger.log_metrics({k: v for k, v in results.items() if k.startswith("test/")}, assembly.trainer.global_step)
    finish(assembly.trainer.loggers)
    record.write("finished", overhead=assembly.recording.watch.overhead)
    print(summary(run.folder, run.config))


def all_figures(run: Run) -> dict[str, Any]:
    """Curves of the training, and the task's own pictures of the test split."""
    rows = read_table(run.folder / "metrics.csv") if (run.folder / "metrics.csv").exists() else []
    batch = next(iter(run.data.test_dataloader()))
    precise = next((p.dtype for p in run.task.parameters() if p.is_floating_point()), torch.float32)
    batch = batch._replace(ys=batch.ys.to(precise))
    return {**run_figures(rows), **task_figures(run.task, batch)}


def interrupted(run: Run, assembly: Assembly, record: runs.Record, stop: Interrupted) -> int:
    """Leave plots and a line that says how to go on."""
    if first_process():
        assembly.table.save()
        record.write("interrupted")
        try:
            write_figures(all_figures(run), run.folder / "plots", assembly.trainer.loggers)
        except (SolveError, ValueError, RuntimeError) as error:
            say(f"no figures of predictions: {error}", FAILED)
        finish(assembly.trainer.loggers, "failed")
        say(f"interrupted; go on with: python -m ndeflow.train resume={run.folder}", stop.exit_status)
    return stop.exit_status


def failed(run: Run, assembly: Assembly, record: runs.Record, error: Exception) -> int:
    """One line on what went wrong; what was saved before stays."""
    if first_process():
        kept = run.folder / "checkpoints" / "last.ckpt"
        finish(assembly.trainer.loggers, "failed")
        note = f"; the last checkpoint is kept: {kept}" if kept.exists() else ""
        say(f"{error}{note}", FAILED)
        try:
            record.write("failed", error=str(error))
        except OSError:
            pass  # a full disk has been reported already
    return FAILED


def make_data(config: Any) -> DataModule:
    """The data module, set up; its sizes go into the configuration."""
    data = resources.instantiate(resources.resolved(config.data))
    if not isinstance(data, DataModule):
        raise ConfigError(f"expected an ndeflow.DataModule as data, got {type(data).__name__}")
    data.setup()
    resources.update(config, sizes=data.sizes)
    return data


def make_task(config: Plain, data: DataModule) -> tuple[Task, str]:
    """The task with freshly seeded weights, and the configuration as it will be saved."""
    if config["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise ConfigError("expected a GPU for trainer=gpu, found none; use trainer=cpu")
    torch.set_num_threads(config["trainer"]["threads"])
    torch.set_flush_denormal(True)
    torch.manual_seed(config["seed"])
    task = resources.instantiate(config["task"])
    if not isinstance(task, Task):
        raise ConfigError(f"expected an ndeflow.Task as task, got {type(task).__name__}")
    task.spec = data.spec
    return task, resources.to_yaml(config)


def start_from(task: Task, folder: str) -> None:
    """The best weights of another run of the same model."""
    weights = read_run(folder).weights
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ConfigError(f"init_from: the weights of {folder} are not of this model ({first})") from error


def make_trackers(run: Run) -> list[Any]:
    node = run.config["logger"]
    if not node:
        return []
    extra = {"run_dir": run.folder, "config": run.config} if node["_target_"].endswith("wandb_logger") else {}
    return [resources.instantiate(node, **extra)]


def summary(folder: Path, config: Plain) -> str:
    """What a run reached, what that means for its claim, and where everything lies."""
    results = runs.read_json(folder / "results.json")
    width = max((len(name) for name in results), default=0)
    lines = [f"  {name:<{width}}  {value:.4g}" for name, value in results.items()]
    verdicts = claims.judge(config["expect"], {"": [results]}) if config["expect"] else []
    if verdicts:
        claim = (config["about"] or {}).get("claim", "")
        lines += [f"claim: {claim}" if claim else "claim:", *[f"  {verdict}" for verdict in verdicts]]
    places = ("plots", "metrics.csv", "checkpoints/best.ckpt", "results.json")
    lines += [f"{name.partition('/')[0]:<12} {folder / name}" for name in places]
    lines.append(f"predict with it: python -m ndeflow.sample run={folder}")
    return "\n".join(["", "test split:", *lines])


def checked(config: Any) -> None:
    """Refuse values of the wrong kind, and a run without data, model or task."""
    for key in ("data", "model", "task"):
        if config[key] is None:
            raise ConfigError(f"expected {key}=NAME, got none; choose a recipe, or one of configs/{key}")
    for key, kind, what in KINDS:
        value = resources.value(config, key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise ConfigError(f"expected {key} to be {what}, got {value!r}")


KINDS = (
    ("seed", int, "a whole number"),
    ("log_every", int, "a number of steps"),
    ("patience", int, "a number of validations"),
    ("save_every", (int, float), "a number of seconds"),
    ("check", bool, "true or false"),
    ("optimizer.lr", (int, float), "a number"),
    ("trainer.max_epochs", int, "a number of epochs"),
    ("trainer.max_steps", int, "a number of steps"),
    ("trainer.threads", int, "a number of threads"),
    ("data.batch_size", int, "a number of rows"),
)


def recipe_name(given: Plain) -> str:
    """The name of the recipe on a command line; of the data where there is none."""
    recipe = Path(given.get("recipe") or given.get("data", "run"))
    return recipe.parent.name if recipe.stem == "recipe" else recipe.stem


def first_process() -> bool:
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def say(error: object, status: int) -> int:
    """One line on standard error, by the first process."""
    if first_process():
        print(f"ndeflow: {' '.join(str(error).split())}", file=sys.stderr)
    return status
