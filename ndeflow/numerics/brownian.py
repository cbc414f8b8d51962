"""Brownian noise as a pure function of (seed, sample, step, channel): the same in any order, batch or device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
WORDS = 4
MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
CHUNK = 1 << 18
BLOCK = 64
OWN = 2**63 - 1


def philox(counter: Sequence[Any], key: Sequence[Any]) -> list[Any]:
    """Philox4x32-10: four pseudo-random 32-bit words for each four-word counter.

    counter: four int64 tensors of 32-bit values that broadcast together, or four integers. key: two 32-bit integers,
    or 0-dim tensors. Returns four words as `counter` has them. The multipliers are less 2^32, so that no product
    overflows, which compiled code must not do: the low half is the same, the high half less by the factor.
    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3.
    """
    a, b, c, d = counter
    for i in range(ROUNDS):
        k0, k1 = ((word + i * weyl) & WORD for word, weyl in zip(key, WEYL, strict=True))
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (q >> 32) + c & WORD ^ b ^ k0, q & WORD, (p >> 32) + a & WORD ^ d ^ k1, p & WORD
    return [a, b, c, d]


def box_muller(first: Tensor, second: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent standard normals of each pair of 32-bit words.

    sqrt(-2 ln u) (cos, sin)(2 pi v) with u in (0, 1], v in [0, 1) on a grid of 2^-24: exact in float32, and the
    logarithm never sees 0. first, second: int64, one shape; the normals have it too.
    """
    u = ((first >> 8) + 1).to(dtype) * 2.0**-24
    angle = (second >> 8).to(dtype) * (2.0**-23 * math.pi)
    radius = (-2.0 * u.log()).sqrt()
    return radius * angle.cos(), radius * angle.sin()


def row_normals(
    key: Sequence[Any], index: Tensor, first: Tensor | int, last: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    """Standard normals that rows own: (..., B, size).

    key: two words. index: (B,) int64, as `Brownian.rows` gives it: ~i for the opposite of row i. first, last: words
    that broadcast against (B, 1). The counter is (first + four channels, index low, index high, last). Made in float32,
    in float64 if `dtype` is; the words behind them are the same on every device.
    """
    quads = torch.arange(-(-size // WORDS), device=index.device)
    opposite = (index >> 63)[:, None]
    own = index[:, None] ^ opposite
    # & WORD: the compiler would multiply the numbers of quads, but not words, in 32 bits
    a, b, c, d = philox((first + quads & WORD, own & WORD, own >> 32, last), key)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    normals = torch.stack((*box_muller(a, b, wide), *box_muller(c, d, wide)), dim=-1)
    return (normals.flatten(-2)[..., :size] * (opposite | 1)).to(dtype)


def step_normals(key: Sequence[Any], index: Tensor, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Standard normals of a step: (B, size), or (N, B, size) of N steps.

    key: the seed's low and high word. index: (B,) int64, of the rows. step: its number, int64, 0-dim or (N, 1, 1).
    """
    return row_normals(key, index, 0, step & WORD, size, dtype)


@dataclass(frozen=True, eq=False)
class Brownian:
    """The Brownian motions that drive a batch: row b's path depends on (seed, index[b]) alone.

    seed: any integer (its low 64 bits count). index: (B,) int64, each row's key, such as its place in the data
    set (its low 63 bits count); None: 0, ..., B - 1. antithetic: keys 2 k and 2 k + 1 have opposite paths, those
    of key k and its negative, so that the mean over a pair has no error that is odd in the noise (Hammersley and
    Morton 1956, A new Monte Carlo technique: antithetic variates).
    """

    seed: int
    index: Tensor | None = None
    antithetic: bool = False

    def __post_init__(self) -> None:
        index = self.index
        if index is not None and (index.ndim != 1 or index.is_floating_point() or index.is_complex()):
            raise ValueError(
                f"expected an index of integers of shape (B,), got {index.dtype} of shape {tuple(index.shape)}; "
                "give one integer key a row"
            )

    @classmethod
    def drawn(cls) -> Brownian:
        """A Brownian motion whose seed is drawn from torch's default generator."""
        return cls(int(torch.randint(2**62, ())))

    def check(self, batch: int) -> None:
        """Raise ValueError unless the index, if there is one, has a key for each of `batch` rows."""
        if self.index is not None and len(self.index) != batch:
            raise ValueError(
                f"expected a noise index with one key for each of {batch} rows, got {len(self.index)}; "
                "give Brownian(seed, index) the index of this batch, or none"
            )

    def of(self, rows: Tensor) -> Brownian:
        """Those of some rows (R,), by their places."""
        return replace(self, index=rows if self.index is None else self.index.to(rows.device)[rows])

    @property
    def key(self) -> tuple[int, int]:
        """The low and the high word of the seed."""
        return self.seed & WORD, self.seed >> 32 & WORD

    def branch(self, number: int) -> tuple[int, int]:
        """The key of a stream of its own, such as that of the `number`-th tree: two words that Philox makes."""
        low, high, *_ = philox((number & WORD, number >> 32 & WORD, 0, WORD), self.key)
        return low, high

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """The index of each of the rows, (B,) int64: i >= 0, or ~i for the opposite of the path of i."""
        self.check(batch)
        index = torch.arange(batch) if self.index is None else self.index
        index = index.to(device=device, dtype=torch.int64)
        return (index >> 1 & OWN) ^ -(index & 1) if self.antithetic else index & OWN

    @torch.no_grad()
    def normals(
        self, first_step: int, count: int, size: int, *, batch: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Standard normals of `count` steps from `first_step`: (count, B, size), never on the autograd graph.

        Entry [n, b, c] depends on the seed, index[b], first_step + n and c only. Numbers are made in float32,
        in float64 if `dtype` is; their integers are the same on every device.
        """
        index = self.rows(batch, device)
        chunk = max(1, CHUNK // max(1, batch * size))
        pieces = [
            step_normals(self.key, index, _numbers(first_step + n, min(chunk, count - n), device), size, dtype)
            for n in range(0, count, chunk)
        ]
        return torch.cat(pieces) if pieces else torch.empty(0, batch, size, dtype=dtype, device=device)


def _numbers(first: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(first, first + count, device=device).view(-1, 1, 1)


class Path:
    """A Brownian motion's normals step by step, drawn a block of steps at a time.

    The last block is kept, so that walking forwards or backwards costs one draw a block. size: normals a row and
    step. total: number of steps of the whole walk.
    """

    def __init__(
        self, brownian: Brownian, size: int, total: int, *, batch: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._draw = partial(brownian.normals, size=size, batch=batch, dtype=dtype, device=device)
        self._total = total
        self._first = 0
        self._block: tuple[Tensor, ...] = ()

    def __call__(self, step: int) -> Tensor:
        """The normals of step number `step`: (B, size)."""
        if not self._first <= step < self._first + len(self._block):
            self._first = step - step % BLOCK
            self._block = self._draw(self._first, min(BLOCK, self._total - self._first)).unbind()
        return self._block[step - self._first]
