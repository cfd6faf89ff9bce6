"""Submit a command as a job of a cluster; list, show and stop jobs.

Submitting the same command again attaches to it while it runs, resumes it where it failed, was stopped or was lost, and shows the result of
a run that is finished.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import ClusterError
from pipelines.data.files import shown
from pipelines.errors import CLUSTER, INTERRUPTED, RecipeError
from pipelines.screen import Screen
from pipelines.submission import VERBS, Submission, address_of, check_sent, submission_of
from pipelines.tracking.provenance import redact

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

ID = "raylway.submission"
"""Key in the metadata of a job: the id that all submissions of one command share; Ray's own ids are used once."""
_TAIL_LINES = 12
_MEANING, _PACKAGE = "raylway.meaning", "raylway.package"
_TRIES = 5
_PROGRAM = Path(__file__).resolve().parents[1]
_LOGIN = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Options:
    """Options of a submission."""

    address: str | None = None
    name: str | None = None
    folder: Path = Path()
    excludes: tuple[str, ...] = ()
    again: bool = False
    wait: bool = True


def submit(verb: str, words: Sequence[str], given: Mapping[str, Any], options: Options, screen: Screen) -> dict[str, Any]:
    """Run `verb words…` (parsed to `given`) as a job and follow it to its end: its id, status, exit code and, with --json, its result.

    Raises RecipeError before anything is asked, ClusterError for what is wrong with the cluster or the id.
    """
    if verb not in VERBS:
        raise RecipeError(f"submit: {verb} is no job; there are: {', '.join(VERBS)}")
    address = address_of(options.address, os.environ)
    submission = submission_of(verb, words, given, folder=options.folder, name=options.name, environment=os.environ)
    if submission.folder != _PROGRAM:
        screen.say(f"the command was checked by the program in {_PROGRAM}; the job runs the one in {submission.folder}")
    for name in _LOGIN:
        if os.environ.get(name):
            screen.say(f"{name} stays here; the job logs in with what the cluster's nodes have")
    from cluster.jobs import Jobs, Taken

    jobs = Jobs(address)
    typed = shlex.join(["raylway", "submit", "--address", shown(address), *_typed(options), "--", verb, *words])
    for _ in range(_TRIES):
        with contextlib.suppress(Taken):  # someone else submitted the same a moment ago: look again
            return _submitted(jobs, submission, options, screen, typed)
    raise ClusterError(f"{submission.id}: the cluster says that this id is used, and shows no job of it; choose another by --name")


def code_of(result: Mapping[str, Any]) -> int:
    """The exit code of `submit`: the job's own; 0 where nobody waited; 130 where it was stopped, or is no longer followed."""
    if result["detached"] or result["status"] == "STOPPED":
        return INTERRUPTED
    if result["status"] != "FAILED":
        return 0
    code = result["exit_code"]
    return CLUSTER if code is None or signal_of(code) else code


def _submitted(jobs: Jobs, submission: Submission, options: Options, screen: Screen, typed: str) -> dict[str, Any]:
    every = jobs.all()
    before = newest(every, submission.id)
    if before:
        _check_same(before, submission)
    if before and not before.over:
        screen.say(f"{before.id}: is there already, since {clock(before.began)}")
        return _followed(jobs, before, submission, options, screen, typed)
    from cluster.jobs import package_of

    package = package_of(submission.folder, options.excludes)
    check_sent(submission, package.files)
    done = before and before.status == "SUCCEEDED" and before.metadata.get(_PACKAGE, package.uri) == package.uri
    if before and done and submission.lasting and not options.again:
        screen.say(f"{before.id}: finished at {clock(before.ended)}; raylway submit --again looks whether its data have changed since")
        show_end(jobs, before, screen)
        return _outcome(jobs, before, submission)
    id = _free(every, submission.id)
    again = f", after {before.id}: {ended(before)}" if before else ""
    screen.say(f"{id}: {len(package.files):,} files, {package.bytes / 1e6:,.1f} MB, to {shown(jobs.address)}{again}")
    identity = {ID: submission.id, _MEANING: submission.meaning, _PACKAGE: package.uri}
    jobs.submit(id, submission.command, package=package, environment=dict(submission.environment), metadata=identity)
    return _followed(jobs, jobs.one(id), submission, options, screen, typed)


def _check_same(before: Job, submission: Submission) -> None:
    """Raises ClusterError if the id is that of a job with other settings. One that failed may have failed because of them."""
    same = before.metadata[_MEANING] == submission.meaning if _MEANING in before.metadata else before.command == submission.command
    if not same and before.status != "FAILED":
        raise ClusterError(
            f"{submission.id}: the name is taken by a job with other settings, {before.id} ({ended(before)}):\n"
            f"there  {before.command}\nhere   {submission.command}\nchoose another name, by name= or --name"
        )


def _followed(jobs: Jobs, job: Job, submission: Submission, options: Options, screen: Screen, typed: str) -> dict[str, Any]:
    """The job to its end, what it writes on the screen; or as it is, where nobody waits or Ctrl-C ends the waiting."""
    how = f"follow it: {typed}\nstop it:   raylway submit --address {shown(jobs.address)} --stop {job.id}"
    if not options.wait:
        screen.say(f"{job.id}: {job.status.lower()}\n{how}")
        return _outcome(jobs, job, submission)
    try:
        job = jobs.follow(job.id, screen.copy)
    except KeyboardInterrupt:
        screen.say(f"\n{job.id}: no longer followed; it goes on\n{how}")
        return _outcome(jobs, jobs.one(job.id), submission, detached=True)
    except ClusterError as error:
        raise ClusterError(f"{error}\nfollow it again, or go on with it: {typed}") from None
    screen.say(f"{job.id}: {ended(job)}")
    if job.status != "SUCCEEDED":
        screen.say(f"go on with it: {typed}")
    return _outcome(jobs, job, submission)


def _outcome(jobs: Jobs, job: Job, submission: Submission, *, detached: bool = False) -> dict[str, Any]:
    wanted = submission.as_json and job.over
    return {
        "address": shown(jobs.address),
        **job_json(job),
        "detached": detached,
        "result": _result_in(jobs.log(job.id)) if wanted else None,
    }


def _result_in(log: str) -> dict[str, Any] | None:
    """The JSON object that a command writes as its last line."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    with contextlib.suppress(ValueError):
        result = json.loads(last)
        return result if isinstance(result, dict) else None
    return None


def _free(every: Sequence[Job], id: str) -> str:
    """An id that no job has: Ray's are used once."""
    used, numbered = {job.id for job in every}, (f"{id}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([id], numbered) if each not in used)


def _typed(options: Options) -> list[str]:
    """The options that decide what is submitted, as they were typed."""
    named = ["--name", options.name] if options.name else []
    folder = ["--working-dir", str(options.folder)] if options.folder != Path() else []
    return [*named, *folder, *(word for each in options.excludes for word in ("--exclude", each))]


# ---- the jobs of a cluster


def list_jobs(address: str | None, screen: Screen) -> dict[str, Any]:
    """Show every job of the cluster."""
    jobs = _jobs(address)
    every = jobs.all()
    columns = ["job", "status", "exit code", "began", "took", "command"]
    rows = [
        [job.id, job.status, "" if job.exit_code is None else job.exit_code, clock(job.began), _took(job), redact(job.command)]
        for job in every
    ]
    screen.table("", columns, rows)
    return {"address": shown(jobs.address), "jobs": [job_json(job) for job in every]}


def show(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """Show one job and the end of its log."""
    jobs = _jobs(address)
    job = _job_of(jobs, id)
    screen.say(f"{job.id}: {ended(job)}; began {clock(job.began)}, {_took(job)}")
    screen.say(redact(job.command))
    show_end(jobs, job, screen)
    return {"address": shown(jobs.address), **job_json(job)}


def stop(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """Ask a job to stop, and wait until it has; its workers leave a checkpoint first. Raises ClusterError if it does not."""
    jobs = _jobs(address)
    job = _job_of(jobs, id)
    if job.over:
        screen.say(f"{job.id}: is over already; {ended(job)}")
    else:
        screen.say(f"{job.id}: asked to stop; waiting for its checkpoint")
        job = jobs.stop(job.id)
        if not job.over:
            raise ClusterError(f"{job.id}: was asked to stop, and is still {job.status.lower()}; see raylway submit --status {job.id}")
        show_end(jobs, job, screen)
        screen.say(f"{job.id}: {ended(job)}" + ("; the command that submitted it goes on with it" if job.status == "STOPPED" else ""))
    return {"address": shown(jobs.address), **job_json(job)}


def newest(every: Sequence[Job], id: str) -> Job | None:
    """The newest job submitted under that id."""
    return next((job for job in reversed(every) if job.metadata.get(ID, job.id) == id), None)


def job_json(job: Job) -> dict[str, Any]:
    """The JSON of a job."""
    return {"submission_id": job.id, "status": job.status, "exit_code": job.exit_code, "command": redact(job.command)}


def ended(job: Job) -> str:
    """The state of a job, or how it ended, in a few words."""
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
    """Print the last lines of a job's log."""
    screen.say("\n".join(f"  {redact(line)}" for line in jobs.log(job.id).splitlines()[-_TAIL_LINES:]))


def _jobs(address: str | None) -> Jobs:
    url = address_of(address, os.environ)
    from cluster.jobs import Jobs

    return Jobs(url)


def _job_of(jobs: Jobs, id: str) -> Job:
    """The newest job submitted under an id. Raises ClusterError if there is none."""
    every = jobs.all()
    if (job := newest(every, id)) is None:
        raise jobs.no_such(id, every)
    return job


def _took(job: Job) -> str:
    return f"{(job.ended or time.time()) - job.began:,.0f} s"


def _cause(message: str) -> str:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in message.splitlines() if line.strip()]
    return redact(lines[0])[:300] if lines else "Ray does not say why"
