"""scripts/reproduce.py with trainings that take no time: a stand-in for `python -m ndeflow.train`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRAIN = """
import json, os, signal, sys, time
from pathlib import Path

words = dict(word.lstrip("+").partition("=")[::2] for word in sys.argv[1:])
with open("calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
resumed = "resume" in words
run = Path(words["resume"] if resumed else words["run_dir"].strip("'"))
if (run / "config.yaml").exists() != resumed:
    sys.exit("ndeflow: the run folder is not as expected")
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("")
recipe, seed = words.get("recipe", "slow"), int(words.get("seed", 1000))
if recipe == "absent":
    print("ndeflow: expected a package; run: pip install aeon", file=sys.stderr)
    sys.exit(3)
if recipe == "broken" and seed == 1001:
    print("epoch 1\\rndeflow: the loss is NaN\\n", file=sys.stderr)
    sys.exit(1)
if recipe == "slow" and not resumed:
    (run / "checkpoints" / "last.ckpt").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Path("started").touch()
    time.sleep(60)
score = float(words.get("model.width", 1)) + 0.1 * (seed - 1000) + float(words.get("data.drop", 0))
threads = int(os.environ["OMP_NUM_THREADS"])
results = {"test/score": score, "threads": threads}
if recipe == "cheap":
    results |= {"test/nfe": 10 * score, "train/seconds_per_step": 0.1}
(run / "results.json").write_text(json.dumps(results))
(run / "run.json").write_text(json.dumps({"versions": {"torch": "2.13.0", "python": "3.12.1"}, "commit": "abc"}))
"""

RECIPES = {
    "good": """
about: {paper: Somebody 2020, claim: wider is better, minutes: 1}
versus: {narrow: [+model.width=0.5]}
grid: {+data.drop: [0, 0.25]}
expect: {test/score@0: ">= narrow:test/score@0 + 0.4", test/score@0.25: "<= 2 * narrow:test/score@0.25"}
""",
    "cheap": """
versus: {narrow: [+model.width=0.5]}
expect: {narrow:test/nfe: "<= 0.6 * test/nfe", test/score: ">= 1"}
""",
    "wrong": "expect: {test/score: '>= 3'}",
    "broken": "expect: {test/score: '>= 0'}",
    "absent": "expect: {test/score: '>= 0'}",
    "slow": "expect: {test/score: '>= 0'}",
    "student": "needs: {teacher: silent}\nexpect: {test/score: '>= 0'}",
    "silent": "about: {paper: Nobody, claim: nothing}",
}


class Table:
    """An empty folder with recipes, the stand-in and a table of claims."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path, text in {"ndeflow/__init__.py": "", "ndeflow/train.py": TRAIN}.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        (folder / "recipes").mkdir()
        for name, text in RECIPES.items():
            (folder / "recipes" / f"{name}.yaml").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "--jobs", "2", "--out", "my out", *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=env, text=True, stdout=pipe, stderr=pipe)

    def make(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """The trainings since the last time of asking."""
        path = self.folder / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def results(self) -> dict[str, dict]:
        return {result["recipe"]: result for result in json.loads((self.folder / "my out" / "table.json").read_text())}


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path)


def test_recipe_variants_cells_and_seeds_are_trained_and_judged_once(table):
    status, out, err = table.make("good", "--seeds", "2")
    assert (status, err) == (0, "")
    calls = table.calls()
    assert len(calls) == 8 and len(set(calls)) == 8
    assert sum("+data.drop=0.25 +model.width=0.5 seed=1001 run_dir=" in call for call in calls) == 1
    result = table.results()["good"]
    assert result["values"]["narrow@0.25"] == [{"test/score": 0.75, "threads": 1}, {"test/score": 0.85, "threads": 1}]
    assert [(v["met"], round(v["measured"], 9)) for v in result["verdicts"]] == [(True, 1.05), (True, 1.3)]
    assert result["environment"] == {"python": "3.12.1", "torch": "2.13.0", "commit": "abc", "threads": "1"}
    line = "| good | Somebody 2020 | wider is better | `test/score@0 >= narrow:test/score@0 + 0.4` = 0.95 |"
    assert line in out and line in (table.folder / "my out" / "table.md").read_text()
    assert "[8/8]" in out

    assert table.make("good", "--seeds", "3")[0] == 0
    assert [call.split("seed=")[1].split()[0] for call in table.calls()] == ["1002"] * 4


def test_what_bounds_its_evaluations_is_drawn_against_its_cost(table):
    status, out, err = table.make("cheap", "good", "--seeds", "2")
    assert (status, err) == (0, "")
    pictures = [path.name for path in (table.folder / "my out").glob("*.png")]
    assert pictures == ["cheap.png"] and "cheap.png" in out


def test_a_recipe_that_changed_is_trained_again_unless_only_its_claims_did(table):
    path = table.folder / "recipes" / "wrong.yaml"
    assert table.make("wrong", "--seeds", "1")[0] == 1
    path.write_text("expect: {test/score: '>= 1'}")
    assert table.make("wrong", "--seeds", "1")[0] == 0 and len(table.calls()) == 1
    path.write_text("expect: {test/score: '>= 1'}\noptimizer: {lr: 0.5}")
    assert table.make("wrong", "--seeds", "1")[0] == 0 and len(table.calls()) == 1


def test_what_fails_stays_in_the_table_and_is_tried_again(table):
    status, out, _ = table.make("broken", "absent", "wrong", "--seeds", "2")
    assert status == 1
    assert "broken seed=1001: FAILED: the loss is NaN" in out
    assert "**NOT reproduced**: 1 of 2 trainings failed (the loss is NaN)" in out
    assert "skipped: expected a package; run: pip install aeon" in out
    assert "| `test/score >= 3` | 1.05 ± 0.071 | **NOT reproduced** |" in out
    table.calls()
    table.make("broken", "wrong", "--seeds", "2")
    (again,) = table.calls()
    assert "recipe=broken" in again and "seed=1001" in again
    assert set(table.results()) == {"absent", "broken", "wrong"}


def test_absent_data_are_no_failure(table):
    assert table.make("absent")[0] == 0


def test_an_interrupted_table_goes_on_where_it_stopped(table):
    process = table.start("slow", "wrong", "--seeds", "1")
    deadline = time.monotonic() + 30
    while not (table.folder / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on from here" in err
    table.calls()
    assert table.make("slow", "--seeds", "1")[0] == 0
    (call,) = table.calls()
    assert call.startswith("resume=") and call.endswith("/run")


def test_what_a_recipe_needs_is_trained_first_and_once(table):
    assert table.make("student", "silent", "--seeds", "2")[0] == 0
    calls = table.calls()
    assert len(calls) == 4
    for seed, score in (("seed=1000", 1.0), ("seed=1001", 1.1)):
        teacher, student = (call for call in calls if seed in call)  # in this order
        assert "recipe=silent" in teacher and "recipe=student" in student
        run = Path(student.split("needs.teacher='")[1].split("'")[0])
        assert f"run_dir='{run}'" in teacher
        assert json.loads((run / "results.json").read_text())["test/score"] == pytest.approx(score)


def test_without_names_all_recipes_that_claim_something(table):
    for name in ("slow", "broken", "absent", "wrong", "student"):
        (table.folder / "recipes" / f"{name}.yaml").unlink()
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'scripts')!r}]; import reproduce; print(*reproduce.chosen([]))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=table.folder, env=env, text=True, capture_output=True)
    assert "good" in done.stdout.split() and "silent" not in done.stdout.split(), done.stderr


def test_the_table_goes_into_a_readme(table):
    readme = table.folder / "README.md"
    readme.write_text("# Title\n")
    status, _, err = table.make("wrong", "--seeds", "1", "--readme", "README.md")
    assert status == 2 and "<!-- claims: begin -->" in err and table.calls() == []
    readme.write_text("# Title\n<!-- claims: begin -->\n<!-- claims: end -->\nrest\n")
    table.make("wrong", "--seeds", "1", "--readme", "README.md")
    text = readme.read_text()
    assert text.startswith("# Title\n<!-- claims: begin -->\n| Recipe |") and text.endswith(
        "<!-- claims: end -->\nrest\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expect: {test/score: '>= other:test/score'}", "recipe mine: expected other:test/score of a variant"),
        ("expect: {test/score: '>= 2 x'}", "recipe mine: expected an operator with spaces around it"),
        ("needs: {teacher: mine}\nexpect: {a: '>= 1'}", "recipes that do not need each other, got mine -> mine"),
        ("needs: {teacher: nobody}\nexpect: {a: '>= 1'}", "nobody"),
    ],
)
def test_claims_that_cannot_be_judged_stop_before_any_training(table, text, message):
    (table.folder / "recipes" / "mine.yaml").write_text(text)
    status, _, err = table.make("mine")
    assert status == 2 and message in err and len(err.splitlines()) == 1 and table.calls() == []
