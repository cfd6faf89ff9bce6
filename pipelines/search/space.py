"""The space of a sweep: `loguniform(1e-4, 1e-1)` and its like, under the names that overrides have. Functions as in Ray Tune."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import yaml

from pipelines.errors import RecipeError

_FORMS = {
    "uniform": "uniform(low, high)",
    "loguniform": "loguniform(low, high), low above 0",
    "quniform": "quniform(low, high, step)",
    "randint": "randint(low, high), whole numbers, high left out",
    "choice": "choice(a, b, …)",
    "grid": "grid(a, b, …)",
}
_FIXED = ("data.", "scale.", "track.", "sweep.", "storage", "name", "workload", "recipe", "preset", "train.log_every", "train.keep")
_FACTORS = (0.8, 1.2)
_RESAMPLED = 0.25

Params = dict[str, Any]
"""A point of a space: dotted key -> value."""


@dataclass(frozen=True)
class Domain:
    """The values that one setting may have: numbers between two ends (`low`, `high`, perhaps a `step`), or `options`."""

    kind: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    options: tuple[Any, ...] = ()

    @property
    def listed(self) -> bool:
        return self.kind in ("choice", "grid")

    def values(self) -> list[Any] | None:
        """All values, or None where they cannot be counted."""
        if self.listed:
            return list(self.options)
        if self.kind == "randint":
            return list(range(int(self.low), int(self.high)))
        if self.step:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            return [float(f"{self.low + number * self.step:.12g}") for number in range(steps + 1)]
        return None

    def ends(self) -> list[Any]:
        """Values that show whether the setting takes all of them."""
        if self.kind in ("uniform", "loguniform"):
            return [self.low, math.nextafter(self.high, self.low)]
        values = self.values() or []
        return values if self.listed else [values[0], values[-1]]

    def holds(self, value: Any) -> bool:
        if self.values() is not None:
            return self.place(value) is not None
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def changed(self, value: Any, random: Random) -> Any:
        """A value near `value`, or now and then any: the exploration of Population Based Training."""
        values = self.values()
        if values is not None:
            place = self.place(value)
            if place is None or random.random() < _RESAMPLED:
                return random.choice(values)
            return values[min(max(place + random.choice((-1, 1)), 0), len(values) - 1)]
        if random.random() < _RESAMPLED:
            if self.kind == "loguniform":
                return math.exp(random.uniform(math.log(self.low), math.log(self.high)))
            return random.uniform(self.low, self.high)
        return min(max(value * random.choice(_FACTORS), self.low), self.high)

    def place(self, value: Any) -> int | None:
        """The place of `value` among the values that can be counted."""
        return next((place for place, each in enumerate(self.values() or ()) if _same(value, each)), None)


class Space(dict[str, Domain]):
    """Dotted key -> Domain, in the order they were written."""

    @property
    def axes(self) -> list[str]:
        """Settings whose every value is gone through."""
        return [key for key, domain in self.items() if domain.kind == "grid"]

    def size(self) -> int | None:
        """The number of points, or None where they cannot be counted."""
        counts = [domain.values() for domain in self.values()]
        return None if any(values is None for values in counts) else math.prod(len(values or ()) for values in counts)

    def points(self, keys: Sequence[str]) -> Iterator[Params]:
        """Every combination of the values of `keys`, the last one changing fastest."""
        for values in itertools.product(*(self[key].values() or () for key in keys)):
            yield dict(zip(keys, values, strict=True))

    def fitted(self, params: Mapping[str, Any], base: Mapping[str, Any]) -> Params | None:
        """The point at which settings that were tried lie, those they do not name being `base`'s; None where they lie outside."""
        if any(key not in self and not _same(value, base.get(key)) for key, value in params.items()):
            return None
        point = {key: params.get(key, base.get(key)) for key in self}
        return point if all(domain.holds(point[key]) for key, domain in self.items()) else None


def read(written: Mapping[str, str]) -> Space:
    """The space that a recipe or the command line writes. Raises RecipeError with every problem."""
    space, problems = Space(), []
    if not written:
        problems.append("sweep.space: nothing to search; give --space optim.lr=loguniform(1e-4,1e-1), or a space in the recipe")
    for key, text in written.items():
        if key.startswith(_FIXED):
            problems.append(f"sweep.space.{key}: cannot be searched; trials are compared on the same data, and judged by what they learn")
            continue
        try:
            space[key] = _domain(text)
        except ValueError as error:
            problems.append(f"sweep.space.{key}: {error}")
    if problems:
        raise RecipeError(*problems)
    return space


def check(space: Space, load: Callable[[list[str]], Any]) -> None:
    """Raises RecipeError for values that a setting does not take; `load` makes a run of overrides, and raises RecipeError."""
    problems: dict[str, None] = {}
    for key, domain in space.items():
        for value in domain.ends():
            try:
                load(overrides({key: value}))
            except RecipeError as error:
                problems |= dict.fromkeys(f"sweep.space: {problem}" for problem in error.problems if problem.startswith(key))
                # a value may be refused only beside another setting's, which the search may change too
                if len(space) == 1 and not any(problem.startswith(key) for problem in error.problems):
                    problems |= dict.fromkeys(f"sweep.space: {problem}" for problem in error.problems)
    if problems:
        raise RecipeError(*problems)


def overrides(params: Mapping[str, Any]) -> list[str]:
    """A point as `key.path=value`, which give back the very same values."""
    return [f"{key}={_yaml(value)}" for key, value in params.items()]


def key_of(params: Mapping[str, Any]) -> str:
    """Equal for equal settings, whatever their order: 32 and 32.0 are equal, 1 and True are not."""
    return repr(sorted((key, str(float(value)) if type(value) in (int, float) else repr(value)) for key, value in params.items()))


def name_of(params: Mapping[str, Any]) -> str:
    """Settings in short, for a list of runs: `lr=0.0031 filters=32`."""
    lasts = [key.rpartition(".")[2] for key in params]
    named = {key: last if lasts.count(last) == 1 else key for key, last in zip(params, lasts, strict=True)}
    return " ".join(f"{named[key]}={value:.3g}" if isinstance(value, float) else f"{named[key]}={value}" for key, value in params.items())


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _same(one: Any, other: Any) -> bool:
    return key_of({"": one}) == key_of({"": other})


def _domain(text: str) -> Domain:
    """Raises ValueError with what would be right."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        call = None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _FORMS and not call.keywords):
        raise ValueError(f"{text!r} is no space; there are: {'; '.join(_FORMS.values())}")
    kind = call.func.id
    values = [_value(node) for node in call.args]
    if kind in ("choice", "grid"):
        options = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        if not options or len({key_of({"": option}) for option in options}) < len(options):
            raise ValueError(f"{text!r}: {_FORMS[kind]}, each value once")
        return Domain(kind, options=tuple(options))
    wanted = 3 if kind == "quniform" else 2
    if len(values) != wanted or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{text!r}: {_FORMS[kind]}")
    low, high, step = values[0], values[1], values[2] if kind == "quniform" else None
    whole = kind != "randint" or all(isinstance(value, int) for value in values)
    if low >= high or not whole or (kind == "loguniform" and low <= 0) or (step is not None and step <= 0):
        raise ValueError(f"{text!r}: {_FORMS[kind]}; low must be below high")
    return Domain(kind, low, high, step)


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is what it would be in a recipe: `lstm` a text, `true` a truth."""
    if isinstance(node, ast.Name):
        return yaml.safe_load(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(each) for each in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{ast.unparse(node)!r} is no value") from None
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{ast.unparse(node)!r} is no value of a setting")
    return value
