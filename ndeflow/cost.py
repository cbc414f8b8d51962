"""What a prediction costs: evaluations and seconds of one forward pass, apart from training."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from ndeflow.contracts import Batch
from ndeflow.models.base import Model
from ndeflow.numerics.solution import Solver

CALLS, ENOUGH = 3, 1.0  # at most so many calls, or seconds


@dataclass(frozen=True)
class PredictionCost:
    """The cost of predicting one batch, without gradients.

    seconds: of the fastest of up to three calls. nfe: evaluations of a row, the mean over rows, summed over solves;
    they move with tolerance, batch and dtype, which are named. solver: in words; empty without a solve.
    """

    seconds: float
    nfe: float
    rows: int
    dtype: str
    solver: str

    @classmethod
    def of(cls, model: Model, batch: Batch) -> Self:
        """Measured on a batch, where the model is; the model's mode is evaluation meanwhile."""
        training, taken = model.training, []
        model.eval()
        try:
            with torch.no_grad():
                while len(taken) < CALLS and sum(taken) < ENOUGH:
                    start = time.perf_counter()
                    output = model(batch)
                    _synchronize(output.prediction.device)
                    taken.append(time.perf_counter() - start)
        finally:
            model.train(training)
        nfe = sum(float(solution.stats.nfe.double().mean()) for solution in output.solutions)
        solver = described(output.solutions[0].solver) if output.solutions else ""
        dtype = str(output.prediction.dtype).removeprefix("torch.")
        return cls(min(taken), nfe, len(batch.index), dtype, solver)

    def results(self) -> dict[str, float]:
        """Its numbers, by the names that results.json has."""
        return {"predict/nfe": self.nfe, "time/seconds_per_prediction": self.seconds, "predict/rows": float(self.rows)}

    def __str__(self) -> str:
        evaluations = f"{self.nfe:.4g} evaluations, " if self.solver else ""
        solver = f" with {self.solver}" if self.solver else ""
        return f"a batch of {self.rows} takes {evaluations}{1e3 * self.seconds:.3g} ms in {self.dtype}{solver}"


def described(solver: Solver) -> str:
    """Its method, and its tolerances or steps: "tsit5, rtol 1e-06, atol 1e-06"; its name where it has no method."""
    values = {field.name: getattr(solver, field.name) for field in fields(solver)}  # pyright: ignore[reportArgumentType]
    named = [f"{name} {values[name]:g}" for name in ("rtol", "atol", "steps") if name in values]
    return ", ".join([str(values.get("method", type(solver).__name__)), *named])


def _synchronize(device: torch.device) -> Any:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
