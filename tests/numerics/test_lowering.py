"""Machine code: what it checks of shapes, and that what it keeps from call to call is seen by nobody."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import BuiltinFunctionType

import pytest
import torch
from torch import Tensor

from ndeflow.numerics import compilation, lowering, products
from ndeflow.numerics.compiled import Program, Traced
from ndeflow.numerics.lowering import written
from ndeflow.numerics.rewrites import rules

WRITTEN = {
    "network": lambda x, w: torch.tanh(x @ w),
    "attention": lambda x, w: (x @ x.t()).softmax(dim=1) @ x @ w,
    "norm": lambda x, w: torch.nn.functional.layer_norm(x, x.shape[1:]) * w[0],
}
CALLED = {
    "solve": lambda x, w: torch.linalg.solve(w, x.t()),
    "spectrum": lambda x, w: torch.fft.rfft(x).abs(),
}


def graph(function, how):
    traced = Traced(lambda x, w: [function(x, w)], (torch.ones(8, 32), torch.eye(32)), (True, False))
    return traced.rewritten(traced.graph, how)


@pytest.mark.parametrize("how", [rules(), {}], ids=["rewritten", "as it is"])
@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_operations_that_are_written_have_the_shapes_that_were_foretold(function, how, monkeypatch):
    monkeypatch.setattr(products, "pays", lambda: True)
    assert written(graph(function, how))


@pytest.mark.parametrize("function", CALLED.values(), ids=CALLED)
def test_operations_that_are_called_are_checked(function):
    assert not written(graph(function, {}))


def test_operations_of_others_are_checked():
    with torch.library._scoped_library("others", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

        def twice(x: Tensor, w: Tensor) -> Tensor:
            return torch.ops.others.twice(x) @ w

        assert not written(graph(twice, rules()))


def stages(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Of parts that are put together, some of them used by themselves, some given away, one of them as a view."""
    first = torch.tanh(x @ weight.t())
    second = torch.sin(first @ weight.t()) + x
    third = torch.cos(second @ weight.t()).cumsum(dim=1)
    joined = torch.cat([first, second, third])
    return [joined, joined.t() @ torch.cat([x, x, x]), third.square().sum(), second.t(), (third @ weight).relu()]


@pytest.fixture(scope="module")
def program() -> Callable[[Tensor, Tensor], list[Tensor]]:
    """`stages` as machine code, made in inference mode."""
    made = torch.randn(3, 24), torch.randn(24, 24)
    with torch.inference_mode():
        code = Program(stages, made, (True, False), rules())
        code.run([*made])
    return lambda *given: list(code.run([*given]))


def given(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, 24), torch.randn(24, 24) / 5


def assert_right(found: list[Tensor], inputs: tuple[Tensor, Tensor]) -> None:
    for x, want in zip(found, stages(*inputs), strict=True):
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)


needs_compiler = pytest.mark.skipif(compilation._compiler() is not None, reason="no C++ compiler")


@needs_compiler
def test_results_are_left_alone_by_later_calls(program):
    """Of other numbers of rows, some so many that nothing is kept, some as before."""
    calls = [given(seed, rows) for seed, rows in enumerate((2, 5, 5, 1000, 5, 2))]
    results = [program(*inputs) for inputs in calls]
    for inputs, found in zip(calls, results, strict=True):
        assert_right(found, inputs)


@needs_compiler
def test_results_may_be_written_to_and_recorded(program):
    """They are not inference tensors, though the first call was in that mode, and their storage is their own."""
    inputs = given(0, 4)
    for _ in range(3):
        with torch.no_grad():
            found = program(*inputs)
        assert_right(found, inputs)
        assert not any(x.is_inference() for x in found)
        for x in found:
            x.fill_(torch.nan)
        found[0].requires_grad_().sum().backward()


@needs_compiler
def test_threads_keep_what_they_compute_with_apart(program):
    def repeated(seed: int) -> None:
        inputs = given(seed, 3 + seed)
        want = program(*inputs)
        for _ in range(200):
            for x, y in zip(program(*inputs), want, strict=True):
                assert torch.equal(x, y)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(repeated, seed) for seed in range(4)]:
            done.result()


@needs_compiler
def test_a_program_is_called_directly_or_by_the_compilers_own_door(monkeypatch):
    """With the same results; it picks its arguments out of more, and says what else it was given."""
    inputs, unread = given(0, 4), torch.zeros(3)
    code = layer()
    assert isinstance(code.run, BuiltinFunctionType)
    monkeypatch.setattr(lowering, "_calls", lambda: None)
    other = layer()
    assert not isinstance(other.run, BuiltinFunctionType)
    for a, b in zip(*(x.run([inputs[0], unread, inputs[1]]) for x in (code, other)), strict=True):
        assert torch.equal(a, b)
    for wrong in ([inputs[0], unread], [inputs[0], unread, 1.0], inputs):
        with pytest.raises(RuntimeError, match="expected"):
            code.run(wrong)


@needs_compiler
def test_what_a_program_gives_twice_is_freed_once():
    def twice(x: Tensor, weight: Tensor) -> list[Tensor]:
        found = torch.tanh(x @ weight)
        return [found, x, found, x, x + 1]

    inputs = given(0, 3)
    code = Program(twice, inputs, (True, False), rules())
    for _ in range(100):
        for found, want in zip(code.run([*inputs]), twice(*inputs), strict=True):
            torch.testing.assert_close(found, want)


def layer() -> Program:
    """Machine code with an argument in between that it does not read."""
    made = torch.randn(3, 24), torch.randn(3), torch.randn(24, 24)
    return Program(lambda x, _, weight: [WRITTEN["network"](x, weight), x + 1], made, (True, False, False), rules())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have one instruction set")
def test_of_the_instruction_sets_the_first_is_taken_and_a_choice_of_the_users_left(monkeypatch):
    sets = lowering.cpu_vec_isa
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(lowering.VecISA, "check_build", lambda *_: True)
    whole = sets.valid_vec_isa_list
    with lowering.best_instructions():
        assert sets.valid_vec_isa_list() == whole.__wrapped__()[:1]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with lowering.best_instructions():
        assert sets.valid_vec_isa_list is whole
    assert sets.valid_vec_isa_list is whole
