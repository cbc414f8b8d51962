"""The grammar of claims, read by a tokenizer and one function a rule, never by `eval`.

    bound   = (">=" | "<=") sum
    sum     = product {("+" | "-") product}
    product = factor {("*" | "/") factor}
    factor  = "-" factor | number | metric | "se" "(" sum ")" | "(" sum ")"
    metric  = [variant ":"] name ["@" cell]

Words are separated by spaces or parentheses: a metric is written without spaces (`plain:test/accuracy@0.7`), an
operator with spaces around it. `se(...)` is the standard error of the mean over seeds; of a difference, the paired one.
"""

from __future__ import annotations

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, final

_WORD = re.compile(r"[()]|[^\s()]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_METRIC = re.compile(r"(?:(?P<variant>[A-Za-z_][\w.-]*):)?(?P<name>[A-Za-z_][\w./]*)(?:@(?P<cell>\S+))?")
_OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}

Samples = Callable[["Metric"], Sequence[float]]
"""A metric's values, one a seed, in the same order of seeds for every metric."""


class TooFewSeeds(ValueError):
    """A standard error of one seed."""


class Expression(ABC):
    """A number that depends on measured metrics."""

    @abstractmethod
    def value(self, samples: Samples, seed: int | None = None) -> float:
        """At the seed in that place; with None, at the means over seeds."""

    @abstractmethod
    def metrics(self) -> Iterator[Metric]:
        """The metrics that it reads, in the order written."""


@final
@dataclass(frozen=True)
class Metric(Expression):
    """variant: "" for the recipe itself. cell: of a grid of settings, "" outside of one."""

    variant: str
    name: str
    cell: str

    def value(self, samples: Samples, seed: int | None = None) -> float:
        values = samples(self)
        return fmean(values) if seed is None else values[seed]

    def metrics(self) -> Iterator[Metric]:
        yield self

    def __str__(self) -> str:
        return (f"{self.variant}:" if self.variant else "") + self.name + (f"@{self.cell}" if self.cell else "")


@final
@dataclass(frozen=True)
class Number(Expression):
    number: float

    def value(self, samples: Samples, seed: int | None = None) -> float:
        return self.number

    def metrics(self) -> Iterator[Metric]:
        yield from ()


@final
@dataclass(frozen=True)
class Operation(Expression):
    """left symbol right; a division by zero is NaN, which meets no bound."""

    symbol: str
    left: Expression
    right: Expression

    def value(self, samples: Samples, seed: int | None = None) -> float:
        return _OPERATIONS[self.symbol](self.left.value(samples, seed), self.right.value(samples, seed))

    def metrics(self) -> Iterator[Metric]:
        yield from self.left.metrics()
        yield from self.right.metrics()


@final
@dataclass(frozen=True)
class StandardError(Expression):
    """s / sqrt(n) of `inner` over n seeds, s with n - 1; the same at every seed. Raises TooFewSeeds for n < 2."""

    inner: Expression

    def value(self, samples: Samples, seed: int | None = None) -> float:
        count = min(len(samples(metric)) for metric in self.metrics())
        if count < 2:
            raise TooFewSeeds("needs at least 2 seeds for se(...)")
        return deviation([self.inner.value(samples, place) for place in range(count)]) / math.sqrt(count)

    def metrics(self) -> Iterator[Metric]:
        return self.inner.metrics()


@dataclass(frozen=True)
class Bound:
    """symbol: ">=" or "<=". expression: what is compared with. text: as it was written."""

    symbol: str
    expression: Expression
    text: str

    def holds(self, measured: float, threshold: float) -> bool:
        """Whether measured symbol threshold; never where one of them is NaN."""
        return measured >= threshold if self.symbol == ">=" else measured <= threshold


def deviation(values: Sequence[float]) -> float:
    """sqrt(sum (x - mean)^2 / (n - 1)) of n >= 2 values; NaN where one of them is."""
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def parse_bound(text: str) -> Bound:
    """The bound written as `>= expression` or `<= expression`. Raises ValueError with the place of the mistake."""
    words = _Words(text)
    symbol = words.take()
    if symbol.text not in (">=", "<="):
        raise words.error("'>=' or '<='", symbol)
    return Bound(symbol.text, words.everything(), text)


def parse_metric(text: str) -> Metric:
    """The metric written as [variant:]name[@cell]. Raises ValueError for anything else."""
    metric = _metric(text)
    if metric is None:
        raise ValueError(f"expected a metric such as test/loss or plain:test/loss@0.7, got {text!r}")
    return metric


def cell_name(values: Sequence[object]) -> str:
    """A cell's name: its values in the order of the grid, with commas; .70 and 0.7 both as 0.7."""
    return ",".join(_plain(str(value)) for value in values)


def _plain(value: str) -> str:
    if not _NUMBER.fullmatch(value):
        return value
    number = float(value)
    return str(int(number)) if number.is_integer() else str(number)


def _metric(text: str) -> Metric | None:
    match = _METRIC.fullmatch(text)
    if match is None:
        return None
    return Metric(match["variant"] or "", match["name"], cell_name((match["cell"] or "").split(",")))


class _Word(NamedTuple):
    text: str
    column: int


@final
class _Words:
    """The words of a bound, taken one after the other; the last is empty."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = [_Word(m.group(), m.start() + 1) for m in _WORD.finditer(text)] + [_Word("", len(text) + 1)]
        self._place = 0

    def peek(self) -> str:
        return self._words[self._place].text

    def take(self) -> _Word:
        word = self._words[self._place]
        self._place += bool(word.text)
        return word

    def error(self, expected: str, word: _Word) -> ValueError:
        got = repr(word.text) if word.text else "its end"
        return ValueError(f"expected {expected} at column {word.column} of {self.text!r}, got {got}")

    def everything(self) -> Expression:
        expression = self._sum()
        if self.peek():
            raise self.error("an operator with spaces around it, or the end", self.take())
        return expression

    def _sum(self) -> Expression:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Expression:
        return self._chain(("*", "/"), self._factor)

    def _chain(self, symbols: tuple[str, str], operand: Callable[[], Expression]) -> Expression:
        expression = operand()
        while self.peek() in symbols:
            expression = Operation(self.take().text, expression, operand())
        return expression

    def _factor(self) -> Expression:
        word = self.take()
        if word.text == "-":
            return Operation("-", Number(0.0), self._factor())
        if word.text == "(":
            return self._inside()
        if word.text == "se" and self.peek() == "(":
            return self._standard_error(self.take())
        if _NUMBER.fullmatch(word.text):
            return Number(float(word.text))
        metric = _metric(word.text)
        if metric is None:
            raise self.error("a number, a metric without spaces, se(...) or '('", word)
        return metric

    def _inside(self) -> Expression:
        expression = self._sum()
        if self.peek() != ")":
            raise self.error("an operator with spaces around it, or ')',", self.take())
        self.take()
        return expression

    def _standard_error(self, opening: _Word) -> Expression:
        inner = self._inside()
        if not any(True for _ in inner.metrics()):
            raise self.error("a metric inside se(...)", _Word("none", opening.column + 1))
        return StandardError(inner)
