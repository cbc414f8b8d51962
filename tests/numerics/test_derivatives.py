"""The divergence beside the state: closed forms, the logarithm of the flow map's determinant, gradients, adjoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.numerics.adjoint import Adjoint, Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.derivatives import Divergence, Evaluation, ExactDivergence, HutchinsonDivergence
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solve import solve
from tests.regularizers.fields import Linear, Net

F64 = torch.float64
TIGHT = RungeKutta(rtol=1e-9, atol=1e-9, compile="off")
TS = torch.tensor([0.0, 0.7, 1.2], dtype=F64)
ALL = [ExactDivergence(), HutchinsonDivergence(), HutchinsonDivergence(gaussian=True)]
NAMES = ["exact", "signs", "gaussian"]
EACH = pytest.mark.parametrize("divergence", ALL, ids=NAMES)


def points(rows: int, size: int = 2) -> torch.Tensor:
    return torch.randn(rows, size, dtype=F64, generator=torch.Generator().manual_seed(1))


def integral(divergence: Divergence, field, y0, ts=TS, *, solver=TIGHT, adjoint: Adjoint | None = None, **problem):
    """(B, T), and the solution; the noise is the same at each call."""
    torch.manual_seed(3)
    own = divergence.own(y0)
    solution = solve(field, y0, ts, solver=solver, adjoint=adjoint, integrands=((divergence, own),), **problem)
    return solution.integrals[..., 0], solution


def test_of_a_linear_field_it_is_the_trace():
    matrix = points(3, 3)
    got, _ = integral(ExactDivergence(), Linear(matrix), points(4, 3))
    torch.testing.assert_close(got, (matrix.trace() * TS).expand(4, 3))


class Steered(nn.Module):
    """dy/dt = -y + sin(context)."""

    def forward(self, t, y, context):
        return torch.sin(context) - y


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Backsolve()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("solver", [FixedRungeKutta("euler"), FixedRungeKutta("rk4"), TIGHT], ids=lambda x: x.method)
def test_what_the_context_owes_to_the_start_is_no_part_of_the_jacobian(solver, adjoint):
    y0 = 1.5 * points(4).requires_grad_()
    got, _ = integral(ExactDivergence(), Steered(), y0, solver=solver, adjoint=adjoint, context=2 * y0)
    torch.testing.assert_close(got.detach(), (-2 * TS).expand(4, 3))


@pytest.mark.parametrize("divergence", ALL[1:], ids=NAMES[1:])
def test_an_estimate_is_met_on_average_and_has_its_variance(divergence):
    """Var e'Ae: of signs 2 sum (A + A')_ij^2 / 4 over i != j, of normal ones over all i, j."""
    matrix, rows = points(3, 3), 20_000
    with torch.no_grad():
        got = integral(divergence, Linear(matrix), torch.ones(rows, 3, dtype=F64), TS[:2], solver=RungeKutta("heun"))
    found, symmetric = got[0][:, -1] / TS[1], (matrix + matrix.T) / 2
    variance = 2 * symmetric.square().sum() - (0 if divergence.gaussian else 2 * symmetric.diag().square().sum())
    assert abs(found.mean() - matrix.trace()) < 4 * (variance / rows).sqrt()
    assert found.var() == pytest.approx(variance.item(), rel=0.1)


def test_signs_are_exact_where_the_jacobian_is_diagonal():
    matrix = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=F64))
    got, _ = integral(HutchinsonDivergence(), Linear(matrix), points(5, 3))
    torch.testing.assert_close(got, (matrix.trace() * TS).expand(5, 3))


def test_probes_are_signs_or_normal():
    y0 = torch.zeros(5000, 2)
    torch.manual_seed(0)
    signs, normal = (HutchinsonDivergence(gaussian=gaussian).own(y0) for gaussian in (False, True))
    assert signs.dtype == y0.dtype and set(signs.unique().tolist()) == {-1.0, 1.0} and abs(signs.mean()) < 0.05
    assert normal.std() == pytest.approx(1.0, abs=0.05) and len(normal.unique()) > 100


def test_its_integral_is_the_log_determinant_of_the_flow_map():
    field, y0 = Net(), points(3)

    def flow(y: torch.Tensor) -> torch.Tensor:
        return solve(field, y[None], TS, solver=TIGHT).ys[0, -1]

    got, _ = integral(ExactDivergence(), field, y0)
    want = [torch.linalg.slogdet(torch.autograd.functional.jacobian(flow, y)).logabsdet for y in y0]
    torch.testing.assert_close(got[:, -1], torch.stack(want), rtol=1e-6, atol=1e-8)


def test_states_of_several_dimensions_and_context():
    """dy/dt = c y^2: the trace is 2 c sum y, and y = y0 / (1 - c t y0)."""
    y0, c = 0.3 + 0.1 * points(4, 6).view(4, 2, 3), torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=F64)
    got, _ = integral(ExactDivergence(), lambda t, y, c: c.view(-1, 1, 1) * y.square(), y0, context=c)
    want = -2 * torch.log(1 - c.view(-1, 1, 1) * TS[-1] * y0).sum(dim=(1, 2))
    torch.testing.assert_close(got[:, -1], want, rtol=1e-6, atol=1e-8)


def test_backward_in_time_it_is_taken_back():
    field, y0 = Net(), points(3)
    there, solution = integral(ExactDivergence(), field, y0, TS[[0, 2]])
    back, _ = integral(ExactDivergence(), field, solution.ys[:, -1], TS[[2, 0]])
    torch.testing.assert_close(back[:, -1], -there[:, -1], rtol=1e-6, atol=1e-8)


@EACH
def test_gradients_are_those_of_small_differences(divergence):
    field, y0 = Net(), points(3)

    def value() -> torch.Tensor:
        return integral(divergence, field, y0, TS[:2], solver=RungeKutta(rtol=1e-7, atol=1e-7, compile="off"))[0].sum()

    weights = [field.net[0].weight, field.net[2].weight]
    gradients = torch.autograd.grad(value(), weights)
    generator = torch.Generator().manual_seed(5)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction, found = torch.randn(weight.shape, dtype=F64, generator=generator), []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                weight += step * direction
                found.append(value())
            weight += 1e-5 * direction
        want = (found[0] - found[1]) / 2e-5
        assert abs((gradient * direction).sum() - want) < 1e-5 * (1 + abs(want))


@EACH
@pytest.mark.parametrize("adjoint", [Checkpointed(), Backsolve(), Reversible()], ids=lambda a: type(a).__name__)
def test_adjoints_agree(divergence, adjoint):
    field, y0 = Net(), points(3)
    found = []
    for each in (Direct(), adjoint):
        value, _ = integral(divergence, field, y0, adjoint=each)
        found.append([value.detach(), *torch.autograd.grad(value.square().sum(), field.net[0].weight)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("traced")
def test_compiled_solves_agree():
    field, y0 = Net(), points(3)
    found = []
    for compile in ("off", "on"):
        solver = RungeKutta("heun", 1e-2, 1e-2, compile=compile)
        value, _ = integral(ExactDivergence(), field, y0, solver=solver)
        found.append([value.detach(), *torch.autograd.grad(value.square().sum(), field.net[0].weight)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_rows_that_step_apart_agree():
    field, y0 = Net(), points(4)
    apart = RungeKutta(rtol=1e-9, atol=1e-9, batching="per_sample", compile="off")
    found = [integral(ExactDivergence(), field, y0, solver=solver)[0] for solver in (TIGHT, apart)]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


class Counted(Net):
    calls = 0

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(t, y)


@pytest.mark.parametrize("gradients", [False, True])
def test_all_that_reads_the_jacobian_shares_the_evaluation_of_the_rate(gradients):
    """But for the start of a solve that records gradients, from a state that has none."""
    field, y0 = Counted(), points(3)
    pairs = tuple((module, module.own(y0)) for module in ALL)
    with torch.set_grad_enabled(gradients):
        solution = solve(field, y0, TS, solver=RungeKutta(compile="off"), integrands=pairs)
    assert field.calls == solution.stats.nfe[0] + gradients
    assert solution.integrals.requires_grad == gradients


def test_products_with_the_jacobian_are_those_of_its_rows():
    field, y, t, e = Net(), points(3), TS[0], points(3).flip(0)
    want = torch.stack([torch.func.jacrev(lambda z: field(t, z))(row) for row in y])
    for start in (y.clone().requires_grad_(), y):  # recorded, and evaluated again
        at = Evaluation(field, t, start, field(t, start), None)
        before, rows = at.product(e), torch.stack(at.rows, dim=1)
        torch.testing.assert_close(rows, want)
        torch.testing.assert_close(before, torch.einsum("bi,bij->bj", e, want))
        torch.testing.assert_close(at.product(e), before)


def test_a_rate_that_does_not_depend_on_the_state_has_no_divergence():
    for y0 in (points(3), points(3).requires_grad_()):
        assert integral(ExactDivergence(), lambda t, y: torch.ones_like(y), y0)[0].count_nonzero() == 0


def test_under_function_transforms_and_in_inference_mode():
    field, y0 = Net(), points(3)

    def total(y: torch.Tensor) -> torch.Tensor:
        return integral(ExactDivergence(), field, y, TS[:2], solver=RungeKutta("heun", 1e-3, 1e-3))[0].sum()

    (want,) = torch.autograd.grad(total(leaf := y0.clone().requires_grad_()), leaf)
    torch.testing.assert_close(torch.func.grad(total)(y0), want)
    with torch.inference_mode():
        found = total(y0.clone())
    torch.testing.assert_close(found.item(), total(y0).item())


def test_it_does_not_steer_the_steps():
    field, y0 = Net(), points(4)
    plain = solve(field, y0, TS, solver=RungeKutta(compile="off"))
    _, solution = integral(ExactDivergence(), field, y0, solver=RungeKutta(compile="off"))
    assert torch.equal(solution.stats.nfe, plain.stats.nfe)
    torch.testing.assert_close(solution.ys, plain.ys, rtol=1e-13, atol=1e-13)
