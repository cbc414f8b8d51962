"""scripts/benchmark.py on a problem that takes no time, and what its numbers mean."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarking import chart, machine
from benchmarking.apart import apart
from benchmarking.block import Block, Row, errors, joined, made
from benchmarking.cases import CASES, ODE
from benchmarking.measure import Times, interleaved, kept_bytes, timed, with_children
from benchmarking.ode.problem import ODEProblem
from benchmarking.ode.suite import SUITE
from benchmarking.ode.systems import BareField
from benchmarking.problem import loss
from benchmarking.system import Cost
from benchmarking.table import table
from ndeflow import RungeKutta, solve

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
COMMAND = [sys.executable, str(ROOT / "scripts" / "benchmark.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *words], cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_one_command_prints_one_table(tmp_path):
    status, out, err = run(tmp_path, "tiny", "--repeats", "2", "--json", "all.json", "--plot", "all.png")
    assert (status, err) == (0, "")
    assert out.startswith("processor ") and "threads 1" in out and f"torch {version('torch')}" in out
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["machine"]["used by others"][0].isdigit() and 0 <= found["cases"][0]["others"] <= 1
    rows = {row["system"]: row for row in found["cases"][0]["rows"]}
    assert list(rows) == list(CASES["tiny"].systems) and all(f"\n{name} " in out for name in rows)
    assert {row["cost"]["nfe"] for row in rows.values()} == {20}
    for row in rows.values():
        assert row["error"] < 1e-3 and row["gradient_error"] < 1e-2
        assert 0 < row["times"]["minimum"] <= row["times"]["median"]
    assert rows["ndeflow-eager-checkpointed"]["kept"] < rows["ndeflow-eager"]["kept"] / 5
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_sigterm_ends_the_process_of_the_case_too(tmp_path):
    words = [*COMMAND, "tiny", "--repeats", "1000"]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not any(os.getpgid(int(child)) == int(child) for child in children.read_text().split()):
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        process.communicate(timeout=3)  # until nobody holds the pipe to which all of them print
    assert process.returncode == 128 + signal.SIGTERM


def test_what_runs_apart_gives_its_result_and_leaves_nothing_behind(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert apart(os.system, f"exec > {tmp_path}/pipe; sleep 60 &") == 0
    assert select.select([reader], [], [], 5)[0] and os.read(reader, 1) == b""  # nobody holds the other end
    os.close(reader)


def test_what_runs_apart_and_fails_ends_the_command(capfd):
    with pytest.raises(SystemExit):
        apart(os.getpgid, -1)
    assert "ProcessLookupError" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train-33"], "expected cases among train-1, train-32"),
        (["tiny", "--threads", "0"], "expected --threads of at least 1"),
        (["compile", "--plot", "all.png"], "a case of which later calls are timed"),
        (["tiny", "--systems", "scipy"], "invalid choice: 'scipy'"),
    ],
)
def test_wrong_arguments_stop_before_any_solve(tmp_path, words, message):
    status, out, err = run(tmp_path, *words)
    assert (status, out) == (2, "") and message in err


def test_every_system_of_every_case_is_known():
    kinds = {type(case): case.suite() for case in CASES.values()}
    for kind, suite in kinds.items():
        used = {name for case in CASES.values() if isinstance(case, kind) for name in case.systems}
        assert used - {"bare-field"} == set(suite.systems) and ("bare-field" in used) == (suite.bare is not None)
    assert all(set(case.peers) <= set(case.systems) for case in CASES.values() if not isinstance(case, ODE))


def test_systems_take_turns_and_each_round_begins_with_another():
    calls: list[str] = []
    times = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert "".join(calls) == "aaabbb" + "bbbaaa" and len(times) == 2


def test_times():
    times = Times.of([(3.0, 1.0), (1.0, 2.0), (2.0, 0.5), (5.0, 1.0), (4.0, 1.0)])
    assert times == Times(minimum=1.0, median=3.0, spread=2.0, cpu=0.5, rounds=(3.0, 1.0, 2.0, 5.0, 4.0))
    assert times.scaled(2.0) == Times(2.0, 6.0, 4.0, 1.0, (6.0, 2.0, 4.0, 10.0, 8.0))
    other = Times.of([(3.0, 1.0), (2.0, 1.0), (3.0, 1.0), (5.0, 1.0), (1.0, 1.0)])
    assert times.over(other) == 1.0 and times.scaled(2.0).over(other) == 2.0
    clock, cpu = timed(lambda: sum(range(100_000)))
    assert clock > 0 and cpu > 0


def test_processor_time_is_that_of_children_too():
    count = [sys.executable, "-c", "sum(range(10_000_000))"]
    alone, both = timed(lambda: subprocess.run(count))[1], timed(lambda: subprocess.run(count), with_children)[1]
    assert both > 0.05 > alone


class Keeps(torch.autograd.Function):
    """Keeps 3 tensors like x in its ctx, where no hook on saved tensors sees them."""

    @staticmethod
    def forward(ctx, x):
        ctx.tensors = [x * 1, x * 2, x * 3]
        return x.sum()


def test_kept_bytes_are_of_saved_tensors_and_of_what_a_function_keeps():
    x = torch.randn(1000, requires_grad=True)
    assert kept_bytes(lambda: x.exp().exp(), CPU) == pytest.approx(8000, abs=64)
    assert kept_bytes(lambda: Keeps.apply(x), CPU) == pytest.approx(12000, abs=64)
    assert kept_bytes(lambda: x.detach().exp().exp().sum(), CPU) < 64


@pytest.mark.parametrize("name", ["ndeflow-eager", "ndeflow-eager-checkpointed", "torchdiffeq-adjoint", "torchode"])
def test_systems_solve_the_same_problem(name):
    if name == "torchode":
        pytest.importorskip("torchode")
    problem = ODEProblem(ODE("", (), width=4, batch=2, saves=3), CPU)
    system = SUITE.systems[name](problem)
    system.call()
    error, gradient_error = errors(system, problem.reference())
    assert error is not None and error < 1e-3
    assert gradient_error is not None and gradient_error < 1e-2
    cost = system.cost()
    assert cost.counted == 2 * cost.nfe and cost.said in (None, cost.counted)
    assert (cost.again > 0) == (name in ("ndeflow-eager-checkpointed", "torchdiffeq-adjoint"))


def test_jax_gets_the_same_field():
    pytest.importorskip("diffrax")
    from benchmarking.jax_system import tensor
    from benchmarking.ode.peer import Diffrax

    problem = ODEProblem(ODE("", (), width=4, batch=2), CPU)
    system = Diffrax(problem)
    dy = tensor(system.field(None, system.y0, system.weights))
    torch.testing.assert_close(dy.float(), problem.field(problem.ts[0], problem.y0).detach())


def test_rows_of_one_fast_row_solved_apart():
    problem = ODEProblem(ODE("", (), width=4, batch=3, train=False, stiff=50.0), CPU)
    apart, shared = SUITE.systems["ndeflow-eager-separate"](problem), SUITE.systems["ndeflow-eager"](problem)
    error, gradient_error = errors(apart, problem.reference())
    assert error is not None and error < 1e-2 and gradient_error is None  # errors add up over 50 units of time
    cost = apart.cost()
    assert cost.said == cost.counted and cost.counted < 3 * cost.nfe
    assert shared.cost().counted == 3 * shared.cost().nfe


def test_a_horizon_of_so_many_steps():
    problem = ODEProblem(ODE("", (), width=4, batch=2, steps=30), CPU)
    solution = solve(problem.field, problem.y0, problem.ts, solver=RungeKutta("dopri5", 1e-4, 1e-4, compile="off"))
    assert int(solution.stats.accepted[0]) == pytest.approx(30, abs=3) and problem.reference() is None


@pytest.mark.parametrize("train", [False, True])
def test_the_bare_field_is_six_evaluations_and_their_product(monkeypatch, train):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    problem = ODEProblem(ODE("", (), width=4, batch=2, train=train), CPU)
    bare, y = BareField(problem), problem.y0
    bare.call()
    y0 = y.requires_grad_()
    for _ in range(6):
        y = problem.field(problem.ts[0], y)
    out = bare.compiled(y0.detach(), bare.weights)
    if not train:
        torch.testing.assert_close(out, y)
        return
    expected = torch.autograd.grad(y.sum(), [y0, *problem.field.parameters()])
    torch.testing.assert_close([out[0], *out[1].values()], list(expected))


def test_what_is_not_installed_is_absent_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchode", None)
    systems, absent = made(SUITE, ODEProblem(CASES["tiny"], CPU), ["torchode", "torchdiffeq"])
    assert list(systems) == ["torchdiffeq"] and "torchode" in absent["torchode"]


def test_the_table_compares_and_leaves_empty_columns_out():
    fast, slow = Times(0.001, 0.002, 0.0005, 0.001, ()), Times(0.25, 0.3, 0.01, 0.2, ())
    rows = [
        Row("ndeflow", 2.5, 3.5, fast, Cost(20, 18), 1e-4, None, 2_000_000),
        Row("torchdiffeq", 0.1, 0.1, slow, Cost(20), 2e-4, None, None),
    ]
    lines = table(Block(ODE("mine", ()), rows, fast.scaled(0.025), {"diffrax": "no module"}, 0.034)).splitlines()
    assert lines[0] == "mine: dim 2, width 64, batch 32, 2 save points, forward, loss, backward; used by others 3%"
    assert lines[1].split("  ")[0] == "system" and "rows" not in lines[1] and "gradient" not in lines[1]
    assert lines[2].split() == "ndeflow 20+18 1 2 0.5 1 2.50 3.50 2 1.0e-04 2.00 250 (200)".split()
    assert lines[3].split() == "torchdiffeq 20 250 300 10 200 0.10 0.10 2.0e-04 500.00 1 (1)".split()
    assert lines[4].split() == "bare field 20 0.5 1 0.25 0.5".split()
    assert lines[5] == "absent: diffrax (no module)"


def row(system: str, times: Times) -> Row:
    return Row(system, 0.0, 0.0, times, Cost(20), None, None, None)


def test_the_table_says_what_a_penalty_adds():
    base = Times(0.1, 0.2, 0.0, 0.1, (0.1, 0.4, 0.2))
    more = Times(0.095, 0.19, 0.0, 0.1, (0.105, 0.48, 0.19))
    rows = [row("ndeflow", base), row("ndeflow-error", more), row("ndeflow-stiffness", base)]
    title, heads, _, *lines = table(Block(ODE("", (), bar="10 %"), rows, None, {}, 0.0)).splitlines()
    assert "; bar: 10 %; used" in title and heads.endswith("penalty %")
    assert [line.split()[-2:] for line in lines] == [["+5.0", "(-5.0)"], ["+0.0", "(+0.0)"]]


def test_rows_of_processes_have_their_names():
    rows = [row("ndeflow", Times(1.0, 1.0, 0.0, 1.0, ()))]
    blocks = {name: Block(ODE("", ()), rows, None, {}) for name in ("cold", "cached")}
    assert [each.system for each in joined(blocks).rows] == ["cold", "cached"]


@pytest.mark.parametrize("penalty", ["error", "stiffness", "local", "local-biased"])
def test_a_penalty_of_weight_0_is_on_the_graph_and_leaves_states_and_gradient(penalty):
    problem = ODEProblem(ODE("", (), width=4, batch=2), CPU)
    system, plain = (SUITE.systems[f"ndeflow-eager{x}"](problem) for x in (f"-{penalty}", ""))
    ours, theirs = system.result(), plain.result()
    torch.testing.assert_close(ours.y, theirs.y)
    torch.testing.assert_close(ours.gradient, theirs.gradient)
    assert system.kept() > plain.kept()


@pytest.mark.parametrize("most", [1.05, 1.5, 2, 4, 8, 30, 1000])
def test_numbers_of_a_chart_are_few_and_apart(most):
    one = Times(6.8, 6.8, 0.0, 6.8, ())
    rows = [row("a", one), row("b", one.scaled(most))]
    figure = chart.times([Block(ODE("", ()), rows, None, {})], "One call", "processor mine, torch 2")
    axis = figure.axes[0].xaxis
    boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
    inside = [box for box in boxes if figure.axes[0].bbox.x0 <= (box.x0 + box.x1) / 2 <= figure.axes[0].bbox.x1]
    assert len(inside) >= 2 and all(left.x1 < right.x0 for left, right in itertools.pairwise(inside))
    assert figure.legends[0].get_title().get_text() == "processor mine, torch 2"


def test_threads_are_said_to_all():
    one, two = machine.environment(1, "cpu"), machine.environment(2, "cuda")
    assert one["OMP_NUM_THREADS"] == one["NPROC"] == "1" and "eigen=false" in one["XLA_FLAGS"]
    assert two["OMP_NUM_THREADS"] == two["NPROC"] == "2" and "eigen=true" in two["XLA_FLAGS"]
    assert (one["JAX_PLATFORMS"], two["JAX_PLATFORMS"]) == ("cpu", "")


def test_what_others_use_is_what_was_busy_in_a_while(monkeypatch, tmp_path):
    ticks = tmp_path / "stat"
    ticks.write_text("cpu  100 10 20 500 30 1 2 7 0 0\ncpu0 100 10 20 500 30 1 2 7 0 0\n")
    monkeypatch.setattr(machine, "TICKS", ticks)
    monkeypatch.setattr(time, "sleep", lambda _: ticks.write_text("cpu  110 12 23 560 40 2 3 20 5 0\n"))
    assert machine.others() == 0.3  # 10 + 2 + 3 + 1 + 1 + 13 of 100; the time of guests is in that of their users
    assert machine.percent(0.1) == "10%" and machine.percent(0.3).startswith("30% (WARNING")


def test_without_counts_of_the_system_the_load_average_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "TICKS", tmp_path / "none")
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine.others() == 0.25


def test_the_loss_is_the_mean_square():
    assert loss(torch.tensor([1.0, 3.0])).item() == 5.0
