"""Data sets that come with installed packages or are generated, so every recipe trains without a download.

Each is small, always the same for one version of its package, and named by that version.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import io
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.source import Reader, batches_of, even_starts
from workloads.base import Arrays


@dataclass(frozen=True)
class Embedded(Reader):
    """The rows that `make` returns, all at once; `origin` is the package whose version identifies them."""

    label: str
    make: Callable[[], Arrays]
    origin: str

    def identity(self) -> dict[str, str]:
        version = platform.python_version() if self.origin == "python" else importlib.metadata.version(self.origin)
        return {f"{self.label} of {self.origin}": version}

    def columns(self) -> tuple[str, ...]:
        return tuple(self.make())

    def rows(self) -> int:
        return len(next(iter(self.make().values())))

    def starts(self) -> Sequence[int]:
        return even_starts(self.rows())

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        made = self.make()
        return batches_of({name: made[name] for name in columns}, start, stop)

    def place(self, row: int) -> str:
        return f"{self.label}, row {row:,}"


@functools.cache
def digits() -> Arrays:
    """scikit-learn's digits: 1,797 images of 8x8 pixels in 17 shades (Alpaydin & Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return {"image": found.images.astype(np.uint8), "label": found.target}


@functools.cache
def breast_cancer() -> Arrays:
    """scikit-learn's breast cancer: 569 tumours, 30 measurements each, malignant or benign (Wolberg et al., 1995)."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    measured = {name.replace(" ", "_"): found.data[:, column] for column, name in enumerate(found.feature_names.tolist())}
    return measured | {"label": np.array(found.target_names.tolist(), dtype=object)[found.target]}


@functools.cache
def diabetes() -> Arrays:
    """scikit-learn's diabetes: 442 patients, 10 measurements each, and the progress of the disease a year later (Efron et al., 2004)."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    return dict(zip(found.feature_names, found.data.T, strict=True)) | {"target": found.target}


@functools.cache
def seasons() -> Arrays:
    """A generated hourly series of 40 weeks: a daily and a weekly season, a trend and autocorrelated noise."""
    hours = np.arange(40 * 7 * 24)
    rng = np.random.default_rng(0)
    noise = np.zeros(len(hours))
    shocks = rng.normal(0, 0.25, len(hours))
    for hour in range(1, len(hours)):
        noise[hour] = 0.8 * noise[hour - 1] + shocks[hour]
    day, week = 2 * np.pi * hours / 24, 2 * np.pi * hours / 168
    demand = 10 + 3 * np.sin(day) + 1.2 * np.sin(2 * day + 1) + 1.5 * np.sin(week) + hours / len(hours) + noise
    temperature = 15 + 6 * np.sin(day - 0.8) + 4 * np.sin(2 * np.pi * hours / len(hours)) + 0.5 * rng.normal(size=len(hours))
    return {"hour": hours, "demand": demand, "temperature": temperature}


@functools.cache
def python_lines() -> Arrays:
    """Lines of Python's standard library, labelled prose (docstrings and comments) or code: as many of each, no duplicates."""
    found: dict[str, dict[str, None]] = {"prose": {}, "code": {}}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::3]:
        try:
            source = path.read_text(encoding="utf-8")
            comments = _prose_lines(source)
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue
        for number, line in enumerate(source.splitlines(), start=1):
            stripped = line.strip().lstrip("#").strip()
            if len(stripped.split()) >= _WORDS_OF_A_LINE:
                found["prose" if number in comments else "code"].setdefault(stripped)
    kinds = {"prose": list(found["prose"]), "code": [line for line in found["code"] if line not in found["prose"]]}
    count = min(_LINES_OF_A_KIND, *map(len, kinds.values()))
    both = [(lines[place * len(lines) // count], kind) for kind, lines in kinds.items() for place in range(count)]  # evenly spaced
    drawn = np.random.default_rng(0).permutation(len(both))
    return {
        "text": np.array([both[row][0] for row in drawn], dtype=object),
        "label": np.array([both[row][1] for row in drawn], dtype=object),
    }


@functools.cache
def python_manual() -> Arrays:
    """The language reference that `help()` shows, line by line, for language models."""
    from pydoc_data.topics import topics

    lines = [line for name in sorted(topics) for line in topics[name].splitlines(keepends=True)]
    return {"text": np.array(lines, dtype=object)}


_WORDS_OF_A_LINE, _LINES_OF_A_KIND = 4, 4000
_SCIKIT = "scikit-learn"
_ORIGINS = {digits: _SCIKIT, breast_cancer: _SCIKIT, diabetes: _SCIKIT, seasons: "numpy", python_lines: "python", python_manual: "python"}
EMBEDDED = {make.__name__: Embedded(make.__name__, make, origin) for make, origin in _ORIGINS.items()}


def _prose_lines(source: str) -> set[int]:
    """Numbers of the lines that are comments or lie in docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and token.line.strip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            lines |= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines
