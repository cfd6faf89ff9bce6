"""Output for a person: a progress bar on a terminal or in a notebook, a line every 15 seconds in a job log, and nothing of what Ray or
MLflow print."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.tracking import journal

_LOG_LINE_SECONDS = 15.0
_POLL_SECONDS = 0.25
_NOTEBOOK_SECONDS = 1.0
_LOG_WIDTH = 160


class Screen:
    """Write for a person on stdout, in a notebook below its cell, or on stderr where stdout is kept for the JSON of the last line."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if self._console.is_jupyter:  # of tqdm, which libraries import, and which asks for ipywidgets
            warnings.filterwarnings("ignore", "IProgress not found")
        if not self._is_live:
            self._console.width = _LOG_WIDTH  # of a file or a pipe rich would think 80, and cut tables to it

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def copy(self, text: str) -> None:
        """Write the output of another program as it is."""
        self._console.file.write(text)
        self._console.file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._console.print(table(title, columns, rows))

    def result(self, result: Mapping[str, Any]) -> None:
        """Print the JSON object as the last line of stdout if it was asked for."""
        if self._json:
            print(json.dumps(result), flush=True)

    @contextmanager
    def captured(self, log: Path) -> Iterator[None]:
        """Redirect all other output of this process (Ray and MLflow print below Python too) into `log`."""
        sys.stdout.flush()
        sys.stderr.flush()
        stdout, stderr = os.dup(1), os.dup(2)
        own = os.fdopen(os.dup(2 if self._json else 1), "w")
        before = self._console
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        try:
            with ExitStack() as stack:
                if before.is_jupyter:  # there sys.stdout is not descriptor 1, and rich does not write to either
                    text = stack.enter_context(log.open("a"))
                    stack.enter_context(redirect_stdout(text))
                    stack.enter_context(redirect_stderr(text))
                else:
                    self._console = Console(file=own, highlight=False, soft_wrap=True)
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for saved, descriptor in ((stdout, 1), (stderr, 2)):
                os.dup2(saved, descriptor)
                os.close(saved)
            self._console = before
            own.close()

    @contextmanager
    def live(self, render: Callable[[], RenderableType]) -> Iterator[None]:
        """Show what `render` returns, again and again, until the block ends; only on a terminal or in a notebook."""
        if self._console.is_jupyter:  # rich's own way needs ipywidgets and a front end that has them
            from IPython.display import display

            cell: Any = display(render(), display_id=True)
            with _repeating(lambda: cell.update(render()), seconds=_NOTEBOOK_SECONDS):
                yield
            cell.update(render())
        elif self._console.is_terminal:
            # rich would otherwise take what others print, and put it on the screen
            with Live(
                get_renderable=render,
                console=self._console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ):
                yield
        else:
            yield

    @contextmanager
    def counted(self, things: str, total: int, done: Callable[[], int]) -> Iterator[None]:
        """Show how many of `total` are done: a bar on a terminal or in a notebook, a line every 15 seconds in a log."""
        began, console = time.monotonic(), self._console

        def line() -> None:
            console.print(f"{done():,}/{total:,} {things} done after {time.monotonic() - began:,.0f} s", markup=False)

        text = "{task.completed}/{task.total} " + things
        bar = self._bar(text, lambda: {"completed": done(), "total": total})
        with bar if self._is_live else _repeating(line, seconds=_LOG_LINE_SECONDS):
            yield

    @contextmanager
    def progress(self, path: Path, headline: str) -> Iterator[_Follower]:
        """Show the journal at `path` as it grows, until the block ends."""
        follower, console = _Follower(path, headline), self._console
        bar = self._bar("{task.description}", follower.state)
        with bar if self._is_live else _repeating(lambda: follower.print_line(console), seconds=_POLL_SECONDS):
            yield follower

    @property
    def _is_live(self) -> bool:
        """True where what is written can be replaced: on a terminal and in a notebook."""
        return self._console.is_terminal or self._console.is_jupyter

    def _bar(self, text: str, state: Callable[[], Mapping[str, Any]]) -> AbstractContextManager[None]:
        """A progress bar; `state` returns its values, by the arguments of Progress.update."""
        bar = Progress(BarColumn(10), TextColumn(text), TimeRemainingColumn(compact=True), console=self._console)
        task = bar.add_task("starting", total=None)

        def render() -> RenderableType:
            bar.update(task, **state())
            return bar.make_tasks_table(bar.tasks)  # a table, which a notebook can show

        return self.live(render)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    drawn = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


class _Follower:
    def __init__(self, path: Path, headline: str) -> None:
        self._path, self._headline = path, headline
        self._offset = path.stat().st_size if path.exists() else 0
        self._steps: int | None = None
        self._batch = 0
        self._latest: dict[str, float] = {}
        self._printed_step, self._printed_at = 0, time.monotonic()

    def expect(self, steps: int, batch: int) -> None:
        """Set how many steps of how many rows the run has, once that is known."""
        self._steps, self._batch = steps, batch

    def state(self) -> dict[str, Any]:
        step = self._read()
        return {"description": self._line(step), "total": self._steps, "completed": step} if step else {}

    def print_line(self, console: Console) -> None:
        """Print a line for the first step, and then every 15 seconds."""
        step = self._read()
        if step > self._printed_step and (self._printed_step == 0 or time.monotonic() - self._printed_at >= _LOG_LINE_SECONDS):
            console.print(self._line(step) + self._eta(step), markup=False)
            self._printed_step, self._printed_at = step, time.monotonic()

    def _read(self) -> int:
        for point, end in journal.read_from(self._path, self._offset):
            self._offset = end
            self._latest.update(point.metrics)
            self._latest["step"] = point.step
        return int(self._latest.get("step", 0))

    def _line(self, step: int) -> str:
        parts = [f"step {step:,}/{self._steps:,}" if self._steps else f"step {step:,}"]
        shown = ("loss", f"val/{self._headline}")
        parts += [f"{name} {self._latest[name]:.4f}" for name in shown if name in self._latest]
        if "perf/samples_per_second" in self._latest:
            parts.append(f"{self._latest['perf/samples_per_second']:,.0f} samples/s")
        return "  ".join(parts)

    def _eta(self, step: int) -> str:
        rate = self._latest.get("perf/samples_per_second")
        return f"  ETA {(self._steps - step) * self._batch / rate:,.0f} s" if rate and self._steps else ""


@contextmanager
def _repeating(action: Callable[[], None], *, seconds: float) -> Iterator[None]:
    """Call `action` again and again in a thread, until the block ends."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name="screen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
