"""Jobs: list those of a cluster, look at one, stop one; and how a job is told of."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster import ClusterError
from pipelines.errors import INTERRUPTED, shown
from pipelines.screen import Screen
from pipelines.submission import address_of
from pipelines.tracking.provenance import redact

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

ID = "raylway.submission"
"""Where a job's metadata have the id that all goes at the same command share."""
_TAIL_LINES = 12


def listed(address: str | None, screen: Screen) -> dict[str, Any]:
    """Every job that the cluster knows."""
    jobs = _jobs(address)
    every = jobs.all()
    columns = ["job", "status", "exit code", "began", "took", "command"]
    rows = [
        [job.id, job.status, "" if job.exit_code is None else job.exit_code, clock(job.began), _took(job), redact(job.command)]
        for job in every
    ]
    screen.table("", columns, rows)
    return {"address": shown(jobs.address), "jobs": [told(job) for job in every]}


def looked_at(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """What the cluster knows of a job, and the end of what it wrote."""
    jobs = _jobs(address)
    job = _found(jobs, id)
    screen.say(f"{job.id}: {ended(job)}; began {clock(job.began)}, {_took(job)}")
    screen.say(redact(job.command))
    show_end(jobs, job, screen)
    return {"address": shown(jobs.address), **told(job)}


def stopped(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """Ask a job to stop, and wait until it has; its workers leave a checkpoint first. Raises ClusterError if it does not."""
    jobs = _jobs(address)
    job = _found(jobs, id)
    if job.over:
        screen.say(f"{job.id}: is over already; {ended(job)}")
    else:
        screen.say(f"{job.id}: asked to stop; waiting for its checkpoint")
        job = jobs.stop(job.id)
        if not job.over:
            raise ClusterError(f"{job.id}: was asked to stop, and is still {job.status.lower()}; see raylway submit --status {job.id}")
        show_end(jobs, job, screen)
        screen.say(f"{job.id}: {ended(job)}" + ("; the command that submitted it goes on with it" if job.status == "STOPPED" else ""))
    return {"address": shown(jobs.address), **told(job)}


def newest(every: Sequence[Job], id: str) -> Job | None:
    """The last go at the command of that id."""
    return next((job for job in reversed(every) if job.metadata.get(ID, job.id) == id), None)


def told(job: Job) -> dict[str, Any]:
    """A job as JSON has it."""
    return {"submission_id": job.id, "status": job.status, "exit_code": job.exit_code, "command": redact(job.command)}


def ended(job: Job) -> str:
    """How a job stands, or how it ended, in a few words."""
    if job.status != "FAILED":
        return {"SUCCEEDED": "finished"}.get(job.status, job.status.lower())
    if job.exit_code is None:
        return f"failed: {_cause(job.message)}"
    killed = signal_of(job.exit_code)
    return f"its process was killed by signal {killed}" if killed else f"failed with exit code {job.exit_code}"


def signal_of(exit_code: int) -> int | None:
    """The signal that ended a process, as its parent tells it (-9), or the shell between them (137); 130 is a code of ours."""
    return -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 and exit_code != INTERRUPTED else None


def clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "?"


def show_end(jobs: Jobs, job: Job, screen: Screen) -> None:
    """The last lines that a job wrote."""
    screen.say("\n".join(f"  {redact(line)}" for line in jobs.log(job.id).splitlines()[-_TAIL_LINES:]))


def _jobs(address: str | None) -> Jobs:
    found = address_of(address, os.environ)
    from cluster.jobs import Jobs

    return Jobs(found)


def _found(jobs: Jobs, id: str) -> Job:
    """The job that an id means: of several goes at the same, the newest. Raises ClusterError."""
    every = jobs.all()
    if (found := newest(every, id)) is None:
        raise jobs.no_such(id, every)
    return found


def _took(job: Job) -> str:
    return f"{(job.ended or time.time()) - job.began:,.0f} s"


def _cause(message: str) -> str:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in message.splitlines() if line.strip()]
    return redact(lines[0])[:300] if lines else "Ray does not say why"
