"""A model whose batch two processes share; light to import, for the sake of those processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ndeflow.numerics.adjoint import Checkpointed
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Adjoint
from ndeflow.numerics.solve import solve
from tests.problems import Net, start

TS = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)

# Fixed steps are the same for all rows, whoever shares their batch: gradients agree to rounding. Adaptive steps are
# chosen by each process for its own rows: gradients agree as well as the tolerance makes them those of the equation.
ALIKE: list[tuple[Marching, float]] = [(FixedRungeKutta("rk4", 3), 1e-12), (RungeKutta("dopri5", 1e-9, 1e-9), 1e-7)]
ROWS = start(8)


class Ends(nn.Module):
    """The mean square of the states at the end."""

    def __init__(self, solver: Marching, adjoint: Adjoint) -> None:
        super().__init__()
        self.field, self.solver, self.adjoint = Net(gain=2.0), solver, adjoint

    def forward(self, y0: Tensor) -> Tensor:
        return solve(self.field, y0, TS, solver=self.solver, adjoint=self.adjoint).ys[:, -1].square().mean()


def process(rank: int, folder: Path) -> None:
    """Half of the rows each; the first process leaves its gradients in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for i, (solver, _) in enumerate(ALIKE):
        model = DistributedDataParallel(Ends(solver, Checkpointed()))
        model(ROWS.chunk(2)[rank]).backward()
        if rank == 0:
            torch.save([p.grad for p in model.parameters()], folder / f"{i}.pt")
    dist.barrier()  # neither leaves while the other still speaks to it
    dist.destroy_process_group()
