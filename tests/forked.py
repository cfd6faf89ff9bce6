"""New processes that need not import anything heavy: forked from a server that has imported torch, MLflow and scipy, and done nothing else.

Importing them anew is seven of the eight seconds that a short command takes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from pipelines.process import in_background

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "tests.teams",
    "torch._dynamo",  # an optimizer imports it when it is made
    "torch.nn.parallel",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.runtime.migration",
    "pandas",
    "pyarrow.dataset",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.metrics",
    "matplotlib.figure",
    "rich.progress",
    "transformers.models.bert.modeling_bert",
    "typer",
]


def context() -> Any:
    """How to start processes from the server, of which there is one for each process of tests."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    return multiprocessing.get_context("forkserver")


class Command:
    """`python -m MODULE …` in a process of its own, to be used as subprocess.Popen is."""

    def __init__(self, module: str, arguments: Sequence[str], *, cwd: Path, env: dict[str, str]) -> None:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        given = (module, list(arguments), str(cwd), env)
        self._process = context().Process(target=_Main(given, out_end, err_end))
        self._process.start()
        self.args, self.stdout, self.stderr = [module, *arguments], open(out, encoding="utf-8"), open(err, encoding="utf-8")  # noqa: SIM115
        self.pid: int = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate
        for end in (out_end, err_end):
            os.close(end)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        out, err = in_background(self.stdout.read), in_background(self.stderr.read)
        read = (out.result(timeout), err.result(timeout))
        self.wait(timeout)
        for stream in (self.stdout, self.stderr):
            stream.close()
        return read


class _Main:
    """What the new process does; the pipes' ends are handed over as it is pickled."""

    def __init__(self, given: tuple[str, list[str], str, dict[str, str]], out: int, err: int) -> None:
        self.given, self.ends = given, (out, err)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.given, [DupFd(end) for end in self.ends]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.given, ends = state
        for number, end in enumerate(ends, start=1):
            os.dup2(end.detach(), number)

    def __call__(self) -> None:
        module, arguments, cwd, environment = self.given
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        there = environment["PYTHONPATH"].split(os.pathsep)
        sys.path[:] = [cwd, *there, *sys.path]
        if str(ROOT) not in there:  # a copy of the repository is
            for name in [name for name in sys.modules if name.partition(".")[0] in ("pipelines", "workloads", "cluster")]:
                del sys.modules[name]
        random.seed()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
