"""Gradients where solves are used: in processes that share a batch, under torch.func, in Lightning."""

from __future__ import annotations

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import Adjoint
from ndeflow.numerics.solve import solve
from tests.numerics.halves import ALIKE, ROWS, TS, Ends, process
from tests.problems import apart, start


def test_two_processes_have_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=2)
    for i, (solver, bound) in enumerate(ALIKE):
        model = Ends(solver, Checkpointed())
        model(ROWS).backward()
        for p, found in zip(model.parameters(), torch.load(tmp_path / f"{i}.pt"), strict=True):
            assert p.grad is not None and apart(found, p.grad) < bound


SOLVERS = [RungeKutta("dopri5"), FixedRungeKutta("rk4", 3)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.method)
def test_function_transforms_of_states_and_parameters(solver):
    model, y0 = Ends(solver, Direct()), start()
    names, parameters = zip(*model.named_parameters(), strict=True)
    model(leaf := y0.clone().requires_grad_()).backward()

    def loss(y: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (y,))

    primals = [x.detach() for x in (y0, *parameters)]
    found = torch.func.grad(loss, argnums=tuple(range(len(primals))))(*primals)
    wanted = [leaf.grad, *(p.grad for p in parameters)]
    assert all(apart(a, b) < 1e-12 for a, b in zip(found, wanted, strict=True))
    directions = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in primals]
    _, tangent = torch.func.jvp(loss, tuple(primals), tuple(directions))
    along = sum((a * b).sum() for a, b in zip(wanted, directions, strict=True))
    assert apart(tangent, along) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.method)
def test_a_batch_stands_for_vmap(solver):
    """Each row's own gradient, and a vmapped solve refused with that cure."""
    model = Ends(solver, Direct())
    for transform in (torch.func.vmap(model), torch.func.vmap(torch.func.grad(model)), torch.func.jacfwd(model)):
        with pytest.raises(ValueError, match=r"outside of torch\.func\.vmap.* solve takes batches"):
            transform(start().unsqueeze(1))
    y0 = start().requires_grad_()
    ys = solve(model.field, y0, TS, solver=solver).ys[:, -1].sin().sum(dim=1)
    (together,) = torch.autograd.grad(ys.sum(), y0, retain_graph=True)
    for row in range(3):
        (alone,) = torch.autograd.grad(ys[row], y0, retain_graph=True)
        assert apart(alone[row], together[row]) < 1e-12


@pytest.mark.parametrize("adjoint", [Checkpointed(), Backsolve(), Reversible()], ids=lambda a: type(a).__name__)
def test_adjoints_with_a_backward_pass_of_their_own_refuse_function_transforms(adjoint):
    model = Ends(SOLVERS[0], adjoint)
    with pytest.raises(ValueError, match=rf"{type(adjoint).__name__} outside of .* use Direct\(\) there"):
        torch.func.grad(model)(start())
    with pytest.raises(ValueError, match=r"use Direct\(\) there"):
        torch.func.jvp(model, (start(),), (start(),))


class Fitted(lightning.LightningModule):
    def __init__(self, adjoint: Adjoint) -> None:
        super().__init__()
        self.model = Ends(FixedRungeKutta("rk4", 3), adjoint)

    def validation_step(self, batch: Tensor, _: int) -> None:
        assert torch.is_inference_mode_enabled()
        self.log("loss", self.model(batch))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("adjoint", [Checkpointed(), Backsolve(), Reversible()], ids=lambda a: type(a).__name__)
def test_validation_in_inference_mode(adjoint, tmp_path):
    """The same values as in training, which can go on afterwards."""
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", inference_mode=True, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fitted = Fitted(adjoint)
    (found,) = trainer.validate(fitted, DataLoader(list(ROWS), batch_size=4), verbose=False)
    loss = fitted.model(ROWS)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fitted.parameters())
