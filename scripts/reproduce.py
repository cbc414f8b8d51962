#!/usr/bin/env python
"""Train recipes and their variants over several seeds, judge what they claim, and write the table of claims.

    python scripts/reproduce.py [recipe ...] [--seeds N] [--jobs N] [--out DIR] [--readme README.md]

Without names: every recipe that claims something. The same command goes on with a table that was interrupted:
finished trainings are kept, interrupted ones resumed, failed ones repeated. Writes DIR/table.md and DIR/table.json, and
of a recipe that bounds its variants' evaluations a picture, DIR/RECIPE.png: what they reach against what they cost.
Exit status: 0, or 1 where a claim is not reproduced or a training failed, 2 for wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ndeflow import plots, report
from ndeflow.claims import Job, cells, check, expectations, jobs, judge, literal, run_name
from ndeflow.report import Result
from ndeflow.resources import compose, recipes
from ndeflow.runs import read_json, write_json
from ndeflow.training.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST_SEED = 1000  # judged seeds are fresh: settings were chosen with smaller ones
MISSING_DATA, INTERRUPTED = 3, (128 + signal.SIGINT, 128 + signal.SIGTERM)
CLAIMS = ("about", "expect", "versus", "grid", "needs")
EVALUATIONS = "test/nfe"
COSTS = {EVALUATIONS: "evaluations of a prediction", "train/seconds_per_step": "training, seconds a step"}
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Finished:
    """A training that ended. status: of its process. message: the last line of its log. run: its run folder."""

    job: Job
    status: int
    seconds: float
    message: str
    run: Path

    @property
    def interrupted(self) -> bool:
        return self.status < 0 or self.status in INTERRUPTED

    def __str__(self) -> str:
        if self.status == 0:
            return f"{self.seconds / 60:.1f} min"
        if self.status == MISSING_DATA:
            return f"skipped: {self.message}"
        return "interrupted" if self.interrupted else f"FAILED: {self.message}"


@dataclass
class Trainings:
    """Trains each job once, in a folder of `out`, in a process of its own; what had finished before is kept."""

    out: Path
    configs: Mapping[str, Config]
    plan: Sequence[Job]
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def all(self, workers: int) -> dict[Job, Finished]:
        """How each job ended. When interrupted, running trainings are told to save and end, and waited for."""
        futures: dict[Job, Future[Finished]] = {}
        with ThreadPoolExecutor(workers) as pool:
            try:
                for job in self.plan:  # what a job needs stands before it, and so is never waited for in vain
                    needed = {key: futures[other] for key, other in needed_jobs(job, self.configs).items()}
                    futures[job] = pool.submit(self.run, job, needed)
                return {job: future.result() for job, future in futures.items()}
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def run(self, job: Job, needed: Mapping[str, Future[Finished]]) -> Finished:
        folder = self.folder(job)
        before = recorded(folder, job)
        if before is not None and before.status == 0:
            return self.say(before, "finished earlier")
        teachers = {key: future.result() for key, future in needed.items()}
        for key, teacher in teachers.items():
            if teacher.status:
                return Finished(job, teacher.status, 0.0, f"needs {key}: {teacher.message}", folder / "run")
        given = [f"needs.{key}={literal(str(teacher.run))}" for key, teacher in teachers.items()]
        finished = self.train(job, folder, given, before)
        write_json(folder / "job.json", {**asdict(job), "status": finished.status, "seconds": finished.seconds})
        return self.say(finished, str(finished))

    def train(self, job: Job, folder: Path, given: Sequence[str], before: Finished | None) -> Finished:
        """Train in a new run folder, or go on in that of a training that was interrupted."""
        run = folder / "run"
        resumable = (before is None or before.interrupted) and (run / "checkpoints" / "last.ckpt").exists()
        if not resumable:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = [f"recipe={job.recipe}", *job.overrides, *given, f"seed={job.seed}", f"run_dir={literal(str(run))}"]
        words = [f"resume={run}"] if resumable else fresh
        earlier, start = before.seconds if before and resumable else 0.0, time.monotonic()
        status = self.wait_for(words, folder / "log.txt", threads_of(self.configs[job.recipe]))
        return Finished(job, status, earlier + time.monotonic() - start, last_line(folder / "log.txt"), run)

    def wait_for(self, words: Sequence[str], log: Path, threads: int) -> int:
        """The exit status of a training, which runs in a session of its own: only `stop` interrupts it."""
        command = [sys.executable, "-m", "ndeflow.train", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if self.stopped.is_set():
            return INTERRUPTED[0]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
            self.running.add(process)
            if self.stopped.is_set():
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        self.running.discard(process)
        return status

    def stop(self) -> None:
        self.stopped.set()
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)

    def folder(self, job: Job) -> Path:
        """The job's own folder: another one where its overrides, or the settings of a recipe, have changed."""
        settings = {name: value for name, value in self.configs[job.recipe].items() if name not in CLAIMS}
        needed = [str(self.folder(other)) for other in needed_jobs(job, self.configs).values()]
        text = json.dumps([asdict(job), settings, needed], sort_keys=True, default=str)
        name = f"{run_name(job.variant or 'recipe', job.cell)}-{job.seed}"
        return self.out / plain(job.recipe) / f"{plain(name)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def say(self, finished: Finished, what: str) -> Finished:
        job, number = finished.job, next(self.count)
        name = " ".join(part for part in (job.recipe, run_name(job.variant, job.cell), f"seed={job.seed}") if part)
        print(f"[{number}/{len(self.plan)}] {name}: {what}", flush=True)
        return finished


def needed_jobs(job: Job, configs: Mapping[str, Config]) -> dict[str, Job]:
    """The trainings that this one starts from, of the same seed."""
    alone = {recipe: {"needs": configs[recipe].get("needs")} for _, recipe in job.needs}
    return {key: jobs(recipe, alone[recipe], [job.seed])[0] for key, recipe in job.needs}


def recorded(folder: Path, job: Job) -> Finished | None:
    """How the job ended the last time; None where it never did."""
    record = read_json(folder / "job.json")
    if not record:
        return None
    run = folder / "run"
    lost = record["status"] == 0 and not read_json(run / "results.json")
    return Finished(job, 1 if lost else record["status"], record["seconds"], last_line(folder / "log.txt"), run)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; a progress bar's returns count as ends of lines."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return lines[-1].removeprefix("ndeflow: ") if lines else "no output"


def plain(name: str) -> str:
    """A name as one part of a path."""
    return "".join(letter if letter.isalnum() or letter in "-_.@" else "_" for letter in name)


def threads_of(config: Config) -> int:
    """Of one training: the recipe's own, so that its result does not depend on how many run at a time."""
    return int(((config.get("trainer") or {}).get("threads")) or 1)


def result(recipe: str, config: Config, finished: Sequence[Finished]) -> Result:
    """The recipe's part of the table, from all its trainings."""
    about = config.get("about") or {}
    values: dict[str, list[dict[str, float]]] = {}
    for training in finished:
        if training.status == 0:
            values.setdefault(run_name(training.job.variant, training.job.cell), []).append(numbers(training))
    own = [training.seconds / 60 for training in finished if training.status == 0 and not training.job.variant]
    missing = [training for training in finished if training.status == MISSING_DATA]
    failed = [training for training in finished if training.status not in (0, MISSING_DATA)]
    return Result(
        recipe=recipe,
        paper=str(about.get("paper", "")),
        claim=str(about.get("claim", "")),
        seeds=tuple(dict.fromkeys(training.job.seed for training in finished)),
        verdicts=tuple(judge(config.get("expect"), values, cells(config))),
        minutes=sum(own) / len(own) if own else None,
        environment={**environment(finished), "threads": str(threads_of(config))},
        skipped=missing[0].message if missing else "",
        failed=f"{len(failed)} of {len(finished)} trainings failed ({failed[0].message})" if failed else "",
        values=values,
    )


def numbers(training: Finished) -> dict[str, float]:
    return {k: math.nan if v is None else float(v) for k, v in read_json(training.run / "results.json").items()}


def environment(finished: Sequence[Finished]) -> dict[str, str]:
    """Versions and commit; what differs between trainings is named with slashes."""
    found: dict[str, dict[str, None]] = {}
    for training in finished:
        record = read_json(training.run / "run.json")
        commit, _, changed = (record.get("commit") or "").partition("-")
        facts = {**record.get("versions", {}), "commit": commit[:10] + ("-" + changed if changed else "")}
        for name in ("python", "torch", "ndeflow", "commit"):
            if facts.get(name):
                found.setdefault(name, {})[str(facts[name])] = None
    return {name: "/".join(values) for name, values in found.items()}


def configuration(recipe: str) -> Config:
    """The recipe's composed configuration as plain values, references unresolved. Raises ValueError."""
    return OmegaConf.to_container(compose([f"recipe={recipe}"]), resolve=False)  # pyright: ignore[reportReturnType]


def chosen(names: Sequence[str]) -> dict[str, Config]:
    """Configurations of the recipes named, or of all that claim something. Raises ValueError: claims unreadable."""
    configs = {name: configuration(name) for name in dict.fromkeys(names) or sorted(recipes())}
    configs = {name: config for name, config in configs.items() if names or config.get("expect")}
    for name, config in configs.items():
        try:
            check(config)
        except ValueError as error:
            raise ValueError(f"recipe {name}: {error}") from error
    return configs


def with_needed(configs: Mapping[str, Config]) -> dict[str, Config]:
    """The configurations and those of all recipes that they need, these first. Raises ValueError for a circle."""
    found: dict[str, Config] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"expected recipes that do not need each other, got {' -> '.join((*path, name))}")
        if name not in found:
            config = configs[name] if name in configs else configuration(name)
            for needed in (config.get("needs") or {}).values():
                visit(needed, (*path, name))
            found[name] = config

    for name in configs:
        visit(name, ())
    return found


def in_order(planned: Iterable[Job], configs: Mapping[str, Config]) -> list[Job]:
    """The jobs and those that they need, each once and these first."""
    found: dict[Job, None] = {}

    def visit(job: Job) -> None:
        for other in needed_jobs(job, configs).values():
            visit(other)
        found[job] = None

    for job in planned:
        visit(job)
    return sorted(found, key=lambda job: list(configs).index(job.recipe))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="recipe")
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help=f"the first of them ({FIRST_SEED})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time (one a processor)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of runs and table")
    parser.add_argument(
        "--readme", type=Path, help=f"also write the table between {report.BEGIN} and {report.END} here"
    )
    options = parser.parse_args(words)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("expected --seeds and --jobs of at least 1")
    return options


def results_of(configs: Mapping[str, Config], options: argparse.Namespace) -> list[Result]:
    """Train whatever the recipes claim, and judge it."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    planned = {name: jobs(name, config, seeds) for name, config in configs.items()}
    known = with_needed(configs)
    plan = in_order(itertools.chain.from_iterable(planned.values()), known)
    finished = Trainings(options.out.resolve(), known, plan).all(options.jobs)
    return [result(name, configs[name], [finished[job] for job in own]) for name, own in planned.items()]


def picture(result: Result, config: Config) -> Figure | None:
    """The score of all variants against evaluations and training time, of a recipe that bounds both; else None."""
    bounds = expectations(config.get("expect"))
    scores = [(metric.name, bound) for metric, bound in bounds if metric.name.startswith("test/")]
    scored = next((pair for pair in scores if pair[0] != EVALUATIONS), None)
    if not result.values or config.get("grid") or scored is None or EVALUATIONS not in dict(scores):
        return None
    runs = {name or result.recipe: values for name, values in result.values.items()}
    title = f"{result.recipe}: mean of {len(result.seeds)} seeds and its standard error"
    return plots.pareto(runs, scored[0], COSTS, title=title, higher=scored[1].text.startswith(">"))


def publish(results: Sequence[Result], configs: Mapping[str, Config], options: argparse.Namespace) -> None:
    """Write table.json and table.md, with the results of other recipes from earlier calls, the README's part, and the
    pictures."""
    path = options.out / "table.json"
    table = report.merge(report.read(path), results)
    write_atomically(path, report.to_json(table).encode())
    text = report.to_markdown(table)
    write_atomically(path.with_suffix(".md"), text.encode())
    if options.readme:
        write_atomically(options.readme, report.insert(options.readme.read_text(), text).encode())
    written = [path.with_suffix(".md"), path]
    for each in results:
        figure = picture(each, configs[each.recipe])
        if figure is not None:
            written.append(options.out / f"{plain(each.recipe)}.png")
            figure.savefig(written[-1])
    print(f"\n{report.to_markdown(results)}\nwritten: {', '.join(map(str, written))}")


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        configs = chosen(options.recipes)
        if options.readme:
            report.insert(options.readme.read_text(), "")
        results = results_of(configs, options)
        publish(results, configs, options)
    except (ValueError, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED[0]
    return 1 if any(found.reproduced is False for found in results) else 0


if __name__ == "__main__":
    sys.exit(main())
