"""Whether an alert's expression is true of what an operator answers to two scrapes: as much of PromQL as our rules use.

Instant selectors, comparisons with a number, `and`, `unless`, `absent`, `sum`, a quotient, `increase` and `rate`. The last
two are the difference of the two scrapes, so a rate is per interval and means something in a quotient only. As for
Prometheus, a series that the first scrape lacks has not increased. What else an expression holds raises.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from lmd_plane.errors import PlaneError

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Scrape = Mapping[str, Vector]

_TOKEN = re.compile(r'\s*([A-Za-z_]\w*|"[^"]*"|\[\w+\]|\d+(?:\.\d+)?|=~|!~|!=|==|>=|<=|[-+*/(){},=<>])')
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def scraped(text: str, **target: str) -> Scrape:
    """Return the samples of a scrape by name; the target's own labels do not replace a sample's (`honorLabels`)."""
    found: dict[str, Vector] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset({**target, **sample.labels}.items())] = sample.value
    return found


def firing(expression: str, now: Scrape, before: Scrape | None = None) -> list[dict[str, str]]:
    """Return the labels of every series for which the expression holds. Raises `PlaneError` for what is not understood."""
    reader = _Reader(_tokens(expression), now, before or {})
    vector = reader.joined()
    if reader.next:
        raise PlaneError(f"not understood from {reader.next!r} on: {expression}")
    return [dict(labels) for labels in vector]


@dataclass
class _Reader:
    """Reads and evaluates at once; each method takes the tokens of one kind of expression and returns its vector."""

    tokens: list[str]
    now: Scrape
    before: Scrape

    @property
    def next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, *expected: str) -> str:
        if not self.tokens or (expected and self.tokens[0] not in expected):
            raise PlaneError(f"{' or '.join(expected) or 'more'} expected, found {self.tokens[:5]}")
        return self.tokens.pop(0)

    def joined(self) -> Vector:
        left = self.compared()
        while self.next in ("and", "unless"):
            wants = self.take() == "and"
            names = self.names("on")
            keys = {_only(labels, names) for labels in self.compared()}
            left = {labels: value for labels, value in left.items() if (_only(labels, names) in keys) is wants}
        return left

    def compared(self) -> Vector:
        left = self.divided()
        if self.next not in _COMPARE:
            return left
        holds, bound = _COMPARE[self.take()], float(self.take())
        return {labels: value for labels, value in left.items() if holds(value, bound)}

    def divided(self) -> Vector:
        left = self.single()
        if self.next != "/":
            return left
        self.take("/")
        right = self.single()
        return {labels: value / right[labels] for labels, value in left.items() if right.get(labels)}

    def single(self) -> Vector:
        match self.take():
            case "(":
                return self.closed()
            case "absent":
                self.take("(")
                return {} if self.closed() else {frozenset(): 1.0}
            case "sum":
                names = self.names("by") if self.next == "by" else ()
                self.take("(")
                return _sum(self.closed(), names)
            case "increase" | "rate":
                self.take("(")
                name, keep = self.take(), self.selector()
                if not self.take().startswith("["):
                    raise PlaneError(f"a range expected after {name}")
                self.take(")")
                old = self.before.get(name, {})
                return {labels: value - old[labels] for labels, value in self.now.get(name, {}).items() if keep(labels) and labels in old}
            case name if re.fullmatch(r"[a-z_]\w*", name) and self.next != "(":
                keep = self.selector()
                return {labels: value for labels, value in self.now.get(name, {}).items() if keep(labels)}
            case other:
                raise PlaneError(f"{other} is not understood")

    def closed(self) -> Vector:
        inner = self.joined()
        self.take(")")
        return inner

    def names(self, word: str) -> tuple[str, ...]:
        self.take(word)
        self.take("(")
        names = []
        while (token := self.take()) != ")":
            names += [token] if token != "," else []
        return tuple(names)

    def selector(self) -> Callable[[Labels], bool]:
        tests: list[tuple[str, str, str]] = []
        if self.next == "{":
            self.take("{")
            while self.next != "}":
                tests.append((self.take(), self.take("=", "!=", "=~", "!~"), self.take().strip('"')))
                if self.next == ",":
                    self.take(",")
            self.take("}")
        return lambda labels: all(_fits(dict(labels).get(name, ""), how, wanted) for name, how, wanted in tests)


def _fits(value: str, how: str, wanted: str) -> bool:
    found = bool(re.fullmatch(wanted, value)) if "~" in how else value == wanted
    return found is not how.startswith("!")


def _only(labels: Labels, names: Iterable[str]) -> Labels:
    return frozenset((name, value) for name, value in labels if name in names)


def _sum(vector: Vector, names: tuple[str, ...]) -> Vector:
    sums: Vector = {}
    for labels, value in vector.items():
        key = _only(labels, names)
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PlaneError(f"not understood from {text[at:]!r} on: {text}")
        tokens.append(match[1])
        at = match.end()
    return tokens
