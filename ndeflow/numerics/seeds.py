"""Seeds as functions of where one is: the same place always draws the same numbers."""

from __future__ import annotations

_WORD = (1 << 64) - 1


def mix(*parts: int) -> int:
    """A seed in [0, 2^63) from integers, of either sign, whose order counts.

    Each part is added to the state, which then takes one step of SplitMix64 (Steele, Lea and Flood 2014, Fast
    Splittable Pseudorandom Number Generators, OOPSLA, Figure 17), so that neighbouring parts give unrelated seeds.
    """
    state = 0
    for part in parts:
        state = _scramble((state + part + 0x9E3779B97F4A7C15) & _WORD)
    return state >> 1


def _scramble(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
