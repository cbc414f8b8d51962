"""Tensors in one line come back as they were; what has a size or a kind of its own stays apart."""

from __future__ import annotations

import torch

from ndeflow.numerics.packing import Line

ROWS = 3


def tensors() -> list[torch.Tensor]:
    made = torch.randn(ROWS, 2), torch.randn(()), torch.randn(4, 5).t(), torch.arange(4), torch.randn(2, ROWS, 1)
    return [*made, torch.randn(2, dtype=torch.float64)]


def test_what_is_packed_comes_back():
    given = tensors()
    line = Line.of(given)
    packed = line.pack(given)
    assert len(packed) == line.count == 3 and packed[-1].shape == (6 + 1 + 20 + 6,)
    assert packed[0] is given[3] and packed[1] is given[5]
    for found, right in zip(line.unpack(packed), given, strict=True):
        assert torch.equal(found, right)


def test_those_to_stay_apart_do_and_a_single_one_does():
    given = tensors()
    line = Line.of(given, apart=[0, 2])
    assert set(line.shapes) == {1, 4} and line.pack(given)[1] is given[2]
    alone = Line.of(given[2:4])
    assert alone.count == 2 and alone.pack(given[2:4]) == given[2:4] == alone.unpack(given[2:4])


def test_any_number_of_rows():
    """Sizes that are the number of rows are known when it comes back, others must be numbers."""
    shapes: list[list[torch.Tensor]] = []

    def handed(x, n):
        rows, length = x.shape[0], n.shape[0]
        made = [x.sin(), x.new_zeros(2, rows), x.new_zeros(length), x.new_zeros(2 * rows), x.new_ones(())]
        line = Line.of(made, rows=rows)
        assert list(line.shapes) == [0, 1, 4]
        shapes.append(line.unpack(line.pack(made), rows))
        return torch.cat([y.flatten() for y in shapes[-1]])

    x, n = torch.randn(ROWS), torch.randn(7)
    make_fx = torch.fx.experimental.proxy_tensor.make_fx
    traced = make_fx(handed, tracing_mode="symbolic")(x, n)
    for rows in (ROWS, 5):
        x = torch.randn(rows)
        right = [x.sin(), torch.zeros(2 * rows), torch.zeros(7), torch.zeros(2 * rows), torch.ones(1)]
        assert torch.equal(traced(x, n), torch.cat([y.flatten() for y in right]))
    assert [len(y.shape) for y in shapes[0]] == [1, 2, 1, 1, 0]
