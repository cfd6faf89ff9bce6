"""What a person sees: a progress bar on a terminal, a line every 15 seconds in a job log, nothing of what Ray or MLflow print."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.tracking import journal

_LOG_LINE_SECONDS = 15.0
_POLL_SECONDS = 0.25
_LOG_WIDTH = 160


class Screen:
    """Speaks to a person on stdout; on stderr where stdout is kept for the JSON of the last line."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = _LOG_WIDTH  # of a file or a pipe rich would think 80, and cut tables to it

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def copy(self, text: str) -> None:
        """Pass on what another program wrote, as it is."""
        self._console.file.write(text)
        self._console.file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._console.print(table(title, columns, rows))

    def result(self, result: Mapping[str, Any]) -> None:
        """The JSON object, as the last line of stdout, if it was asked for."""
        if self._json:
            print(json.dumps(result), flush=True)

    @contextmanager
    def captured(self, log: Path) -> Iterator[None]:
        """Send what anything else in this process prints (Ray and MLflow do, below Python too) into `log`."""
        sys.stdout.flush()
        sys.stderr.flush()
        stdout, stderr = os.dup(1), os.dup(2)
        own = os.fdopen(os.dup(2 if self._json else 1), "w")
        before, self._console = self._console, Console(file=own, highlight=False, soft_wrap=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            _give_back(stdout, 1)
            _give_back(stderr, 2)
            self._console = before
            own.close()

    @contextmanager
    def live(self, render: Callable[[], RenderableType]) -> Iterator[None]:
        """Show what `render` gives, again and again, until the block ends; only on a terminal."""
        if not self._console.is_terminal:
            yield
            return
        shown = Live(
            get_renderable=render, console=self._console, refresh_per_second=2, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with shown:
            yield

    @contextmanager
    def counted(self, things: str, total: int, done: Callable[[], int]) -> Iterator[None]:
        """Show how many of `total` are done, until the block ends: a bar on a terminal, a line every 15 seconds in a log."""
        stop, began, console = threading.Event(), time.monotonic(), self._console

        def follow() -> None:
            if console.is_terminal:
                columns: list[ProgressColumn] = [
                    BarColumn(10),
                    TextColumn("{task.completed}/{task.total} " + things),
                    TimeRemainingColumn(),
                ]
                with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
                    task = bar.add_task("", total=total, completed=done())
                    while not stop.wait(_LOG_LINE_SECONDS / 15):
                        bar.update(task, completed=done())
            while not stop.wait(_LOG_LINE_SECONDS):
                console.print(f"{done():,}/{total:,} {things} done after {time.monotonic() - began:,.0f} s", markup=False)

        thread = threading.Thread(target=follow, name="screen", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextmanager
    def progress(self, path: Path, headline: str) -> Iterator[_Follower]:
        """Show the journal at `path` as it grows, until the block ends."""
        follower = _Follower(self._console, path, headline)
        try:
            yield follower
        finally:
            follower.stop()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    drawn = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


class _Follower:
    def __init__(self, console: Console, path: Path, headline: str) -> None:
        self._console, self._path, self._headline = console, path, headline
        self._offset = path.stat().st_size if path.exists() else 0
        self._steps: int | None = None
        self._batch = 0
        self._seen: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="screen", daemon=True)
        self._thread.start()

    def expect(self, steps: int, batch: int) -> None:
        """How many steps of how many rows the run has, once that is known."""
        self._steps, self._batch = steps, batch

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        if self._console.is_terminal:
            self._draw()
        else:
            self._print_lines()

    def _draw(self) -> None:
        columns: list[ProgressColumn] = [BarColumn(10), TextColumn("{task.description}"), TimeRemainingColumn(compact=True)]
        # rich would otherwise take what others print, and put it on the screen
        shown = Progress(*columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False)
        with shown as bar:
            task = bar.add_task("starting", total=None)
            while not self._stop.wait(_POLL_SECONDS):
                step = self._read()
                if step:
                    bar.update(task, description=self._line(step), total=self._steps, completed=step)

    def _print_lines(self) -> None:
        told, printed = 0, time.monotonic()
        while not self._stop.wait(_POLL_SECONDS):
            step = self._read()
            if step > told and (told == 0 or time.monotonic() - printed >= _LOG_LINE_SECONDS):
                self._console.print(self._line(step) + self._eta(step), markup=False)
                told, printed = step, time.monotonic()

    def _read(self) -> int:
        for point, end in journal.read_from(self._path, self._offset):
            self._offset = end
            self._seen.update(point.metrics)
            self._seen["step"] = point.step
        return int(self._seen.get("step", 0))

    def _line(self, step: int) -> str:
        parts = [f"step {step:,}/{self._steps:,}" if self._steps else f"step {step:,}"]
        shown = ("loss", f"val/{self._headline}")
        parts += [f"{name} {self._seen[name]:.4f}" for name in shown if name in self._seen]
        if "perf/samples_per_second" in self._seen:
            parts.append(f"{self._seen['perf/samples_per_second']:,.0f} samples/s")
        return "  ".join(parts)

    def _eta(self, step: int) -> str:
        rate = self._seen.get("perf/samples_per_second")
        return f"  ETA {(self._steps - step) * self._batch / rate:,.0f} s" if rate and self._steps else ""


def _give_back(saved: int, descriptor: int) -> None:
    os.dup2(saved, descriptor)
    os.close(saved)
