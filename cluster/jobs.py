"""Ray Jobs: submit a command to a cluster, follow it, stop it; plain values in and out, every request bounded in time.

The job itself checks whether the nodes can hold its workers, before anything starts. Python's version here does not matter, for the job's
driver runs on the cluster (Ray 2.60).

The package of a job is counted by Ray's own walker, so the files shown are the files sent. Ray keeps it in the memory of its control
plane, so it has to be small; it reads .gitignore and .rayignore, in the folder and below, leaves out `.git`, `.venv`, `venv` and
`__pycache__`, and does not compress (2.60).
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError

from cluster import ClusterError, connection, ray_internals

_CONNECT_SECONDS, _ANSWER_SECONDS, _SENT_SECONDS = 10.0, 30.0, 300.0
_LOOK_SECONDS, _AGAIN_SECONDS = 20.0, 1.0
LOST_SECONDS = 60.0
"""Time without an answer of the cluster after which a job is no longer followed."""
STOP_SECONDS = 60
"""Time that a job has to stop: its workers leave a checkpoint, and MLflow gets the rest of the run."""
EXCLUDES = (
    "/runs/",
    "/mlruns/",
    "*.egg-info/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    ".env",
    ".netrc",
)
"""Left out beside what Ray, .gitignore and .rayignore leave out: caches, runs, and files that hold passwords by custom."""
FILE_BYTES = 100 << 20
"""Most bytes of one file."""
_NAMED = 3
_LEAVE_OUT = "leave files out by .gitignore, .rayignore or --exclude PATTERN; data belong into a folder that every node reaches"
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class Taken(Exception):
    """A job of that id is there already: ids are used once."""


class NoSuchJob(ClusterError):
    """The cluster knows no job of that id."""


@dataclass(frozen=True)
class Job:
    """A job of a cluster. Times are seconds since 1970."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    exit_code: int | None
    """Of the command; negative where a signal ended it; None where it has not ended by itself."""
    message: str
    metadata: Mapping[str, str]
    began: float
    ended: float | None

    @property
    def over(self) -> bool:
        return self.status in _OVER


@dataclass(frozen=True)
class Package:
    """The files of `folder` that are uploaded with a job (relative path -> bytes), and the URI that Ray gives to this content."""

    folder: Path
    excludes: tuple[str, ...]
    files: dict[str, int]
    uri: str

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (http://head:8265). Raises ClusterError if it cannot be used."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._token = connection.send_token_if_there()
        with self._asked():
            self._client, version = ray_internals.job_client(
                address, connect_seconds=_CONNECT_SECONDS, answer_seconds=_ANSWER_SECONDS, send_seconds=_SENT_SECONDS
            )
        if version != ray.__version__:
            raise ClusterError(f"{address}: the cluster runs Ray {version}, this is Ray {ray.__version__}; both must be the same")

    def all(self) -> list[Job]:
        """Every job that was submitted, the oldest first."""
        with self._asked():
            every = self._client.list_jobs()
        return sorted((_job(each) for each in every if each.submission_id), key=lambda job: job.began)

    def one(self, id: str) -> Job:
        """The job of that id. Raises NoSuchJob, naming those there are."""
        with self._asked(id):
            return _job(self._client.get_job_info(id))

    def submit(self, id: str, command: str, *, package: Package, environment: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        """Send the package, unless the cluster has it, and start the command in it. Raises Taken if the id was used before."""
        started = {
            "working_dir": str(package.folder),
            "excludes": list(package.excludes),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment},
        }
        with self._asked(id):
            self._client.submit_job(entrypoint=command, submission_id=id, runtime_env=started, metadata=dict(metadata))

    def stop(self, id: str) -> Job:
        """Ask a job to stop, and wait until it has, within bounds; the job as it is then."""
        deadline = time.monotonic() + STOP_SECONDS + _ANSWER_SECONDS
        with self._asked(id):
            self._client.stop_job(id)
        while not (job := self.one(id)).over and time.monotonic() < deadline:
            time.sleep(_AGAIN_SECONDS)
        return job

    def log(self, id: str) -> str:
        """The log of a job."""
        with self._asked(id):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str, write: Callable[[str], None]) -> Job:
        """Pass the log of a job to `write`, from its beginning and until the job is over; the job as it ended.

        Raises ClusterError after LOST_SECONDS without an answer.
        """
        return asyncio.run(self._follow(id, write))

    async def _follow(self, id: str, write: Callable[[str], None]) -> Job:
        written, lost_since = 0, None
        while True:
            seen = 0
            try:
                async with contextlib.aclosing(self._pieces(id)) as pieces:
                    async for text in pieces:  # from the beginning each time
                        if fresh := text[max(0, written - seen) :]:
                            write(fresh)
                        seen += len(text)
                        written, lost_since = max(written, seen), None
                if (job := self.one(id)).over:
                    return job
            except NoSuchJob:
                raise
            except (ClusterError, aiohttp.ClientError, OSError, RuntimeError, TimeoutError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_SECONDS:
                    reason = f"{self.address}: no answer for {LOST_SECONDS:g} s while {id} was followed"
                    raise ClusterError(f"{reason} ({_first(error)})") from None
            else:
                lost_since = None
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _pieces(self, id: str) -> AsyncGenerator[str, None]:
        """The log in pieces. A connection may die without an error, and a log be silent for hours, so the job is asked for meanwhile."""
        tail = self._client.tail_job_logs(id).__aiter__()
        while True:
            piece = asyncio.ensure_future(tail.__anext__())
            try:
                while not (await asyncio.wait({piece}, timeout=_LOOK_SECONDS))[0]:
                    self.one(id)
            finally:
                if not piece.done():
                    piece.cancel()
            try:
                yield piece.result()
            except StopAsyncIteration:
                return

    @contextlib.contextmanager
    def _asked(self, id: str = "") -> Iterator[None]:
        """Turn an error of a request into a ClusterError of one sentence."""
        try:
            yield
        except AuthenticationError:
            raise connection.refused(self.address, presented=self._token) from None
        except (requests.RequestException, OSError) as error:
            raise ClusterError(f"{self.address}: no Ray dashboard answers there ({_cause(error)}); {_WHERE}") from None
        except KeyError:
            raise self._no_ray("it tells no version") from None
        except (RuntimeError, ValueError) as error:
            reason = str(error)
            if "already exists" in reason and "submission_id" in reason:
                raise Taken(id) from None
            if "does not exist" in reason or "status code 404" in reason or "returned 404" in reason:
                raise (self.no_such(id, self.all()) if id else self._no_ray(reason)) from None
            raise ClusterError(f"{self.address}: {_first(error)}") from None

    def no_such(self, id: str, every: Sequence[Job]) -> NoSuchJob:
        """The error for an id that none of `every` has."""
        known = [job.id for job in every]
        near = difflib.get_close_matches(id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known[-10:])}" if known else "it has none"
        return NoSuchJob(f"{id}: no such job at {self.address}; {hint}")

    def _no_ray(self, reason: str) -> ClusterError:
        return ClusterError(f"{self.address}: the server there is no Ray dashboard ({reason.splitlines()[0][:120]}); {_WHERE}")


_WHERE = "is the cluster up, and is this the dashboard of its head, such as http://head:8265?"


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        command=details.entrypoint,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        metadata=details.metadata or {},
        began=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
    )


def _first(error: BaseException) -> str:
    """The last line of an error that has a traceback of the server's in it, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if any(line.startswith("Traceback") or "Traceback" in line for line in lines) else 0][:300]


def _cause(error: BaseException) -> str:
    """The reason of a failed request, without the names of classes and the addresses of objects that urllib3 puts around it."""
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return "no answer in time"
    inner: Any = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return str(getattr(inner, "strerror", None) or _first(inner))[-120:]


# ---- the package that is uploaded with a job


def package_of(folder: Path, excludes: Sequence[str] = ()) -> Package:
    """The package of `folder`, without files that match `excludes`. Raises ClusterError, naming the largest files, if it is too large."""
    patterns = (*EXCLUDES, *excludes)
    files, uri, limit_bytes = ray_internals.upload_files(folder, patterns)
    check_size(files, limit_bytes=limit_bytes)
    return Package(folder, patterns, files, uri)


def check_size(files: dict[str, int], *, limit_bytes: int) -> None:
    """Raises ClusterError, naming the largest files, if one of them is larger than FILE_BYTES or all are more than `limit_bytes`."""
    largest = sorted(files, key=lambda name: -files[name])
    if large := [name for name in largest if files[name] > FILE_BYTES]:
        raise ClusterError(f"{_named(large, files)}: a file that goes up may have {_size(FILE_BYTES)} at most; {_LEAVE_OUT}")
    if (total := sum(files.values())) >= limit_bytes:
        raise ClusterError(
            f"{len(files):,} files of {_size(total)} would go up, and Ray takes less than {_size(limit_bytes)}; "
            f"the largest: {_named(largest, files)}; {_LEAVE_OUT}"
        )


def _named(names: Sequence[str], files: dict[str, int]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"{name} ({_size(files[name])})" for name in names[:_NAMED]) + rest


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
