"""How a run ends: completed, interrupted or failed; what is left in its folder, and what a person is told."""

from __future__ import annotations

import errno
import math
import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from ndeflow import claims, runs
from ndeflow.data.loader import moved
from ndeflow.numerics.diagnosis import diagnose
from ndeflow.numerics.solution import SolveError
from ndeflow.runs import FAILED, Run, first_process, say
from ndeflow.training.assembly import Assembly
from ndeflow.training.figures import run_figures, task_figures, write_figures
from ndeflow.training.files import write_atomically
from ndeflow.training.signals import Interrupted
from ndeflow.training.switching import SWITCH
from ndeflow.training.table import read_table
from ndeflow.training.trackers import finish

PLACES = {"plots": "plots", "metrics": "metrics.csv", "checkpoint": "checkpoints/best.ckpt", "results": "results.json"}
TITLES = {
    "test/": "on the test split ({weights} weights)",
    "best/": "best validation",
    "reference/": "other methods on the test split",
    "train/": "a step of training",
}


def completed(
    run: Run, assembly: Assembly, record: runs.Record, results: dict[str, float], words: dict[str, str]
) -> None:
    """Results, figures and the summary of a run that has ended.

    words: for run.json, beside the results: `prediction`, what one costs, and `references`, why there are none.
    """
    if not first_process():
        return
    runs.write_json(run.folder / "results.json", results)
    loggers = assembly.trainer.loggers
    final = {k: v for k, v in results.items() if k.startswith(("test/", "predict/", "time/"))}
    for logger in loggers:
        logger.log_metrics(final, assembly.trainer.global_step)
    assembly.table.save()
    write_figures(_drawn(run), run.folder / "plots", loggers)
    finish(loggers)
    record.write("finished", overhead=assembly.recording.watch.overhead, **words)
    print(summary(run.folder, run.config))


def interrupted(run: Run, assembly: Assembly, record: runs.Record, stop: Interrupted) -> int:
    """Leave metrics, plots and a line that says how to go on; the exit status."""
    if first_process():
        with suppress(OSError):
            assembly.table.save()
            record.write("interrupted")
        _draw(run, assembly)
        say(f"interrupted; to go on: python -m ndeflow.train resume={run.folder}", stop.exit_status)
    return stop.exit_status


def failed(run: Run, assembly: Assembly, record: runs.Record, error: Exception) -> int:
    """One line on what went wrong and where; what was saved before stays; the exit status."""
    if first_process():
        diverged = isinstance(error, SolveError) and assembly.trainer.global_step > 0 and run.last is None
        cure = f"; if training diverged, lower optimizer.lr (step {assembly.trainer.global_step})" if diverged else ""
        say(f"{described(error)}{cure}{_kept(run.folder)}", FAILED)
        with suppress(OSError):  # a full disk has been reported already
            write_atomically(run.folder / "error.txt", "".join(traceback.format_exception(error)).encode())
            record.write("failed", error=str(error))
            assembly.table.save()
        _draw(run, assembly, predictions=False)
    return FAILED


def described(error: Exception) -> str:
    """The error's message, its kind where that says more, and the place in the user's own code where it arose."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}; free disk space, or train in another folder with run_dir="
    expected = isinstance(error, SolveError | FloatingPointError | OSError | ValueError)
    frames = reversed(traceback.extract_tb(error.__traceback__))
    where = next((frame for frame in frames if _is_own(frame.filename)), None)
    place = f" ({Path(where.filename).name}, line {where.lineno}, in {where.name})" if where else ""
    return f"{'' if expected else type(error).__name__ + ': '}{error}{_cause(error)}{place}"


def _cause(error: Exception) -> str:
    """What made a solve that failed expensive, where its steps tell more than that they were many or small."""
    if not isinstance(error, SolveError) or error.partial is None:
        return ""
    found = diagnose(error.partial)
    return f"; judged by its steps: {found}" if found.kind in ("discontinuous", "stiff", "knots") else ""


def _is_own(file: str) -> bool:
    """Whether a source file is neither of this package, nor of Python, nor of an installed package."""
    foreign = (str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
    return not file.startswith(foreign) and not file.startswith("<") and "/ndeflow/train.py" not in file


def _kept(folder: Path) -> str:
    best, last = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    if best.exists():
        return f"; the best weights are kept: {best}"
    return f"; the last checkpoint is kept: {last}" if last.exists() else ""


def _draw(run: Run, assembly: Assembly, *, predictions: bool = True) -> None:
    """Figures of a run that ended early; then close the trackers."""
    with suppress(OSError):
        write_figures(_drawn(run, predictions=predictions), run.folder / "plots", assembly.trainer.loggers)
        finish(assembly.trainer.loggers, "failed")


def _drawn(run: Run, *, predictions: bool = True) -> dict[str, Any]:
    """The figures, as far as they can be drawn: none is worth a failure."""
    figures: dict[str, Any] = {}
    try:
        figures |= curves(run)
        figures |= pictures(run) if predictions else {}
    except Exception as error:
        say(f"note: not all figures could be drawn: {error}", FAILED)
    return figures


def curves(run: Run) -> dict[str, Any]:
    """Figures of the training, from the table."""
    table = run.folder / "metrics.csv"
    return run_figures(read_table(table)) if table.exists() else {}


def pictures(run: Run) -> dict[str, Any]:
    """The task's own figures of the first test batch."""
    batch = next(iter(run.data.test_dataloader()))
    return task_figures(run.task, moved(batch, run.task.model, run.task.device))


def summary(folder: Path, config: dict[str, Any]) -> str:
    """What a run reached, what that means for its claim, and where everything lies."""
    written = runs.read_json(folder / "results.json")
    results = {name: math.nan if value is None else value for name, value in written.items()}
    shown = {name: value for name, value in results.items() if name != SWITCH}
    width = max((len(name.partition("/")[2]) for name in shown), default=0)
    weights = "best" if any(name.startswith("best/") for name in results) else "last"
    lines = []
    for prefix, title in TITLES.items():
        found = {name.removeprefix(prefix): value for name, value in shown.items() if name.startswith(prefix)}
        values = [f"  {name:<{width}}  {value:.4g}" for name, value in found.items()]
        lines += ["", title.format(weights=weights), *values] if found else []
        lines += [*_outside(results), *_switched(results)] if found and prefix == "train/" else []
    words = runs.read_json(folder / "run.json")
    lines += ["", "a prediction", f"  {words['prediction']}"] if "prediction" in words else []
    lines += ["", f"note: {words['references']}"] if "references" in words else []
    lines += _claim(config, results)
    lines += ["", "where", *[f"  {name:<10}  {folder / place}" for name, place in PLACES.items()]]
    return "\n".join([*lines, "", f"to predict with it: python -m ndeflow.sample run={folder}"])


def _outside(results: dict[str, float]) -> list[str]:
    """How much of a step was not training, in words."""
    if "train/seconds_outside" not in results:
        return []
    outside, whole = (1e3 * results[f"train/{name}"] for name in ("seconds_outside", "seconds_per_step"))
    share = f"{outside:.2f} ms ({100 * outside / whole:.1f} %)"
    return [f"  of the {whole:.1f} ms of a step, {share} lie outside forward pass, backward pass and optimizer"]


def _switched(results: dict[str, float]) -> list[str]:
    """From which step on solves were compiled, in words."""
    return [f"  solves were compiled from step {results[SWITCH]:.0f} on"] if SWITCH in results else []


def _claim(config: dict[str, Any], results: dict[str, float]) -> list[str]:
    """The recipe's claim and what this run says about it; one run can not judge what needs others."""
    about, expect = config["about"] or {}, config["expect"]
    if not expect:
        return []
    verdicts = claims.judge(expect, {claims.run_name("", claims.cell_of(config)): [results]}, claims.cells(config))
    judged = [f"  {verdict}" for verdict in verdicts if verdict.met is not None]
    others = len(verdicts) - len(judged)
    needs = f"  {others} more need{'s' * (others == 1)} other runs: scripts/reproduce.py {config['name']}"
    more = [needs] if others else []
    paper = f" ({about['paper']})" if about.get("paper") else ""
    return ["", f"the claim: {about.get('claim', '')}{paper}", *judged, *more]
