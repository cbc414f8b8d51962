"""When a solve is compiled, and that what was compiled never goes stale."""

from __future__ import annotations

import gc
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from ndeflow.numerics import compilation
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.compilation import account
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.lowering import row_by_row
from ndeflow.numerics.solve import solve
from tests.numerics.compiling import HEUN, OFF, ON, TS, Small, assert_alike, assert_right, programs, tanh
from tests.problems import Mixed, Net, apart, start


def scaled(self, t, y):
    return torch.tanh(self.lin(y)) * self.scale


@pytest.mark.usefixtures("traced")
def test_changes_of_parameters_are_seen_without_new_programs():
    field = Small(tanh)
    assert_right(field)
    count, other = programs(field), Small(tanh, scale=1.0)
    with torch.no_grad():
        field.lin.weight.mul_(1.5)
    assert_right(field)
    field.lin.weight = nn.Parameter(torch.eye(2, dtype=torch.float64))
    assert_right(field)
    field.load_state_dict(other.state_dict())
    assert_right(field)
    field.eval()
    assert_right(field)
    assert programs(field) == count and len(account(field).entries) == 1


def assert_same_states(field) -> None:
    with torch.no_grad():
        eager, compiled = (solve(field, start(), TS, solver=solver).ys for solver in (OFF, ON))
    assert apart(compiled, eager) < 1e-14


def freeze(field) -> None:
    field.lin.weight.requires_grad_(False)


def swap(field) -> None:
    field.layer = nn.Sigmoid()


CHANGES = {
    "number": lambda field: setattr(field, "scale", 3.0),
    "mode": lambda field: field.eval(),
    "frozen": freeze,
    "part": swap,
    "option": lambda field: field.options.update(shift=1.0),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_what_was_read_make_new_programs(change):
    """And changes back to what was there find the old ones."""

    def rate(self, t, y):
        gain = 2.0 if self.training else 1.0
        return gain * self.layer(self.lin(y) + self.options["shift"]) * self.scale

    field = Small(rate, scale=0.5, layer=nn.Tanh(), options={"shift": 0.0})
    same = assert_right if change is freeze else assert_same_states
    same(field)
    change(field)
    same(field)
    assert len(account(field).entries) == 2


@pytest.mark.usefixtures("traced")
def test_versions_return():
    field = Small(scaled, scale=0.5)
    for scale in (0.5, 2.0, 0.5, 2.0):
        field.scale = scale
        assert_same_states(field)
    assert len(account(field).entries) == 2


@pytest.mark.usefixtures("traced")
def test_what_changes_from_solve_to_solve_is_named(caplog, monkeypatch):
    monkeypatch.setattr(compilation, "VERSIONS", 3)
    field, solver = Small(scaled, scale=0.0), RungeKutta(**HEUN, compile="auto", compile_after=0)
    account(field).switched = True
    with torch.no_grad():
        for n in range(5):
            field.scale = float(n)
            eager, found = (solve(field, start(), TS, solver=s).ys for s in (OFF, solver))
            assert apart(found, eager) < 1e-14
        with pytest.raises(ValueError, match="got Small: scale changes from solve to solve; pass it as context"):
            solve(field, start(), TS, solver=ON)
    said = [message for message in caplog.messages if "not compiled" in message]
    assert said == ["Small is not compiled: scale changes from solve to solve; pass it as context"]


@pytest.mark.usefixtures("traced")
def test_counters_and_seeds_make_no_new_programs():
    """An attribute that the field writes, and one that it does not read."""
    field = Net(width=4)
    for seed in range(10):
        field.seed = seed
        solve(field, start(), TS, solver=ON)
    assert field.calls > 0 and len(account(field).entries) == 1 and programs(field) == 3


@pytest.mark.usefixtures("traced")
def test_auto_switches_after_enough_evaluations_that_record_gradients():
    field, solver = Net(width=4), RungeKutta(**HEUN, compile="auto", compile_after=40)
    with torch.no_grad():
        for _ in range(5):
            solve(field, start(), TS, solver=solver)
    assert account(field).evaluations == 0
    while account(field).evaluations < 40:
        assert not account(field).switched
        solve(field, start(), TS, solver=solver)
    spent = account(field).evaluations
    compiled = solve(field, start(), TS, solver=solver)
    assert account(field).switched and account(field).evaluations == spent and programs(field)
    assert compiled.stats.backward_nfe is not None
    with torch.no_grad():
        assert apart(solve(field, start(), TS, solver=solver).ys, compiled.ys.detach()) < 1e-14


@pytest.mark.usefixtures("traced")
def test_settings_have_programs_of_their_own():
    """Integrands, data types and autocast; one account for the field."""
    field, own = Small(lambda self, t, y: torch.tanh(self.lin(y))), torch.ones(3, dtype=torch.float64)
    first = solve(field, start(), TS, solver=ON)
    second = solve(field, start(), TS, solver=ON, integrands=[(Mixed(), own)])
    assert apart(second.ys.detach(), first.ys.detach()) < 1e-14 and second.integrals.shape[-1] == 1
    assert len(account(field).entries) == 2


OBSTACLES = {
    "function": (lambda t, y: -y, start(), "not an nn.Module.* wrap it in a module"),
    "complex": (Small(lambda self, t, y: -y), start().to(torch.complex128), "complex; use view_as_real"),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("field", "y0", "cure"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_is_never_compiled(field, y0, cure):
    with pytest.raises(ValueError, match=f"expected a field that can be compiled.*{cure}.*compile=.off"):
        solve(field, y0, TS, solver=ON)
    auto = RungeKutta(**HEUN, compile_after=0)
    assert torch.equal(solve(field, y0, TS, solver=auto).ys, solve(field, y0, TS, solver=OFF).ys)


@pytest.mark.usefixtures("traced")
def test_function_transforms_are_eager():
    field = Small(tanh)

    def end(y, solver):
        return solve(field, y, TS, solver=solver).ys[:, -1].sum()

    auto = RungeKutta(**HEUN, compile_after=0)
    assert torch.equal(torch.func.grad(end)(start(), auto), torch.func.grad(end)(start(), OFF))
    with pytest.raises(ValueError, match=r"under a torch\.func transform"):
        torch.func.grad(end)(start(), ON)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compilation._compiler.cache_clear()
    field = Small(tanh)
    try:
        with pytest.raises(ValueError, match=r"no C\+\+ compiler was found; install g\+\+ or clang"):
            solve(field, start(), TS, solver=ON)
        auto = RungeKutta(**HEUN, compile_after=0)
        assert torch.equal(solve(field, start(), TS, solver=auto).ys, solve(field, start(), TS, solver=OFF).ys)
    finally:
        compilation._compiler.cache_clear()


@pytest.mark.usefixtures("traced")
def test_a_field_is_let_go():
    field = Small(tanh)
    solve(field, start(), TS, solver=ON)
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("traced")
def test_each_solve_is_told_from_the_one_before():
    """Of one field in turn: other tolerances, rows, times, gradients, conditions that need some; each as if alone."""

    def rate(self, t, y, scale):
        return torch.tanh(self.lin(y)) * scale

    field, scale = Small(rate), torch.linspace(0.5, 2, 6, dtype=torch.float64).unsqueeze(1)

    def solved(compile, rows=3, ts=TS, tolerance=1e-2, adjoint=None, learned=False, frozen=False):
        solver = RungeKutta("heun", tolerance, tolerance, compile=compile)
        y0, context = start(rows).requires_grad_(not frozen), scale[:rows].clone().requires_grad_(learned)
        with torch.set_grad_enabled(not frozen):
            solution = solve(field, y0, ts, solver=solver, adjoint=adjoint, context=context)
        if frozen:
            return [solution.ys]
        inputs = [y0, field.lin.weight, *([context] if learned else [])]
        return [solution.ys, *torch.autograd.grad(solution.ys.sin().sum(), inputs)]

    variants = [
        {"rows": 5},
        {"ts": TS[[0, -1]]},
        {"tolerance": 1e-3},
        {"adjoint": Checkpointed()},
        {"learned": True},
        {"frozen": True},
    ]
    for _ in range(2):
        for variant in variants:
            for more in ({}, variant, variant):
                for found, want in zip(solved("on", **more), solved("off", **more), strict=True):
                    assert apart(found.detach(), want.detach()) < 1e-12
    with torch.no_grad():
        field.lin.weight.mul_(2.0)
    assert apart(solved("on")[0].detach(), solved("off")[0].detach()) < 1e-12


@pytest.mark.usefixtures("traced")
def test_what_a_field_has_from_its_class_may_change():
    class Scaled(nn.Module):
        gain = 1.0

        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(2, 2).double()

        def rate(self, y):
            return torch.tanh(y)

        def forward(self, t, y):
            return self.rate(self.lin(y)) * self.gain

    field = Scaled()
    changes = {
        "gain": 2.0,
        "rate": lambda self, y: torch.sin(y),
        "forward": lambda self, t, y: torch.cos(self.lin(y)),
    }
    with torch.no_grad():
        for name, value in {"training": True, **changes}.items():
            setattr(field if name == "training" else Scaled, name, value)
            found, want = (solve(field, start(), TS, solver=solver).ys for solver in (ON, OFF))
            assert apart(found, want) < 1e-13
    assert account(field).versions.number(account(field).watch._survey) == 3


@pytest.mark.usefixtures("traced", "uncollected")
def test_what_a_field_was_solved_with_is_let_go():
    field = Small(lambda self, t, y, scale: torch.tanh(self.lin(y)) * scale)

    def used() -> list[weakref.ref[torch.Tensor]]:
        y0, scale = start().requires_grad_(), torch.ones(3, 1, dtype=torch.float64)
        solve(field, y0, TS, solver=ON, context=scale).ys.sum().backward()
        return [weakref.ref(y0), weakref.ref(scale)]

    for _ in range(3):
        assert all(gone() is None for gone in used())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.skipif(compilation._compiler() is not None, reason="no C++ compiler")
def test_machine_code(tmp_path, monkeypatch):
    """One field compiled in earnest, its start and its steps."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert_same_states(Net(width=4))
    assert any(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(("steps", "fused"), [((1, 16), True), ((16, 16), False)])
def test_loops_that_take_many_rows_at_once_are_not_fused(steps, fused):
    """Steps of the loops over rows, which are fused, and over columns."""
    from torch._inductor.codegen.cpp import OuterLoopFusedSchedulerNode as Fused

    loops = [SimpleNamespace(var=name, size=64, offset=0, steps=n) for name, n in zip("rc", steps, strict=True)]
    kernel = SimpleNamespace(loop_nest=SimpleNamespace(loops=loops), ranges=[64, 64])
    before = Fused.check_outer_fusion_loop_level_attr
    with row_by_row():
        assert Fused.check_outer_fusion_loop_level_attr(Fused.__new__(Fused), [kernel, kernel], 1) == fused
    assert Fused.check_outer_fusion_loop_level_attr is before


def test_another_number_of_rows_that_learns_something_else_is_refused(traced):
    """A gradient that was none with one row would be none for good."""

    def rate(self, t, y):
        return torch.tanh(self.lin(y)) if len(y) == 1 else torch.tanh(self.lin(y)) * self.gain

    field = Small(rate, gain=nn.Parameter(torch.tensor(1.5, dtype=torch.float64)))
    assert_right(field, 1)
    with pytest.raises(ValueError, match="what it learns is another with 3 rows than with 1"):
        solve(field, start(), TS, solver=ON)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_a_first_solve_in_inference_mode_leaves_gradients_to_the_others(traced, adjoint):
    field = Net()
    with torch.inference_mode():
        solve(field, start(), TS, solver=ON, adjoint=adjoint)
    y0 = start().requires_grad_()
    inputs = [y0, *field.parameters()]
    assert_alike(lambda solver: solve(field, y0, TS, solver=solver, adjoint=adjoint), inputs)


def test_forward_mode_is_refused(traced):
    field = Net()
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode differentiation"):
        solve(field, forward_ad.make_dual(start(), torch.ones_like(start())), TS, solver=ON)
