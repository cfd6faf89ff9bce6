"""Submit: a command as a job of a cluster. The same again attaches to it while it runs, goes on with it where it failed, was stopped or
was lost, and shows what came of it when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError
from pipelines.data import files
from pipelines.errors import CLUSTER, INTERRUPTED, RecipeError, shown
from pipelines.screen import Screen
from pipelines.submission import VERBS, Submission, address_of, submission_of
from pipelines.tracking.provenance import redact

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs
    from cluster.upload import Package

_ID, _MEANING, _PACKAGE = "raylway.submission", "raylway.meaning", "raylway.package"
_TAIL_LINES = 12
_PROGRAM = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Asked:
    """How a command is to be submitted."""

    address: str | None = None
    name: str | None = None
    folder: Path = Path()
    excludes: tuple[str, ...] = ()
    again: bool = False
    wait: bool = True


def submit(verb: str, words: Sequence[str], given: Mapping[str, Any], asked: Asked, screen: Screen) -> dict[str, Any]:
    """Run `verb words…` (parsed to `given`) as a job and follow it to its end: its id, status, exit code and, with --json, its result.

    Raises RecipeError before anything is asked, ClusterError for what is wrong with the cluster or the id.
    """
    if verb not in VERBS:
        raise RecipeError(f"submit: {verb} is no job; there are: {', '.join(VERBS)}")
    address = address_of(asked.address, os.environ)
    submission = submission_of(verb, words, given, folder=asked.folder, name=asked.name, environment=os.environ)
    if submission.folder != _PROGRAM:
        screen.say(f"the command was checked by the program in {_PROGRAM}; the job runs the one in {submission.folder}")
    from cluster.jobs import Jobs, Taken

    jobs = Jobs(address)
    typed = shlex.join(["raylway", "submit", "--address", shown(address), *_options(asked), "--", verb, *words])
    while True:
        with contextlib.suppress(Taken):  # someone else submitted the same a moment ago: look again
            return _submitted(jobs, submission, asked, screen, typed)


def listed(address: str | None, screen: Screen) -> dict[str, Any]:
    """Every job that the cluster knows."""
    jobs = _jobs(address)
    every = jobs.all()
    rows = [[job.id, job.status, _exit(job), _clock(job.began), _took(job), redact(job.command)] for job in every]
    screen.table("", ["job", "status", "exit code", "began", "took", "command"], rows)
    return {"address": shown(jobs.address), "jobs": [_told(job) for job in every]}


def looked_at(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """What the cluster knows of a job, and the end of what it wrote."""
    jobs = _jobs(address)
    job = _found(jobs, id)
    screen.say(f"{job.id}: {_ended(job)}; began {_clock(job.began)}, {_took(job)}")
    screen.say(redact(job.command))
    _show_end(jobs, job, screen)
    return {"address": shown(jobs.address), **_told(job)}


def stopped(address: str | None, id: str, screen: Screen) -> dict[str, Any]:
    """Ask a job to stop, and wait until it has; its workers leave a checkpoint first."""
    jobs = _jobs(address)
    job = _found(jobs, id)
    if job.over:
        screen.say(f"{job.id}: is over already; {_ended(job)}")
    else:
        screen.say(f"{job.id}: asked to stop; waiting for its checkpoint")
        job = jobs.stop(job.id)
        if not job.over:
            raise ClusterError(f"{job.id}: was asked to stop, and is still {job.status}; see raylway submit --status {job.id}")
        _show_end(jobs, job, screen)
        screen.say(f"{job.id}: {_ended(job)}")
    return {"address": shown(jobs.address), **_told(job)}


def code_of(result: Mapping[str, Any]) -> int:
    """The exit code of `submit`: the job's own; 0 where nobody waited; 130 where it was stopped, or is no longer followed."""
    if result["detached"] or result["status"] == "STOPPED":
        return INTERRUPTED
    code = result["exit_code"]
    if result["status"] == "FAILED":
        return code if code is not None and 0 < code < 256 else CLUSTER
    return 0


def _submitted(jobs: Jobs, submission: Submission, asked: Asked, screen: Screen, typed: str) -> dict[str, Any]:
    every = jobs.all()
    before = _newest(every, submission.id)
    if before:
        _check_same(before, submission)
    if before and not before.over:
        screen.say(f"{before.id}: is {before.status.lower()} since {_clock(before.began)}; this is what it writes")
        return _followed(jobs, before, submission, asked, screen, typed)
    package = _package(submission, asked)
    if before and before.status == "SUCCEEDED" and not asked.again and before.metadata.get(_PACKAGE, package.uri) == package.uri:
        screen.say(f"{before.id}: finished at {_clock(before.ended)}; run it again with raylway submit --again. The end of what it wrote:")
        _show_end(jobs, before, screen)
        return _outcome(jobs, before, submission)
    id = _free(every, submission.id)
    again = f", after {before.id}: {_ended(before)}" if before else ""
    screen.say(f"{id}: {len(package.files):,} files, {package.bytes / 1e6:,.1f} MB, to {shown(jobs.address)}{again}")
    jobs.submit(
        id,
        submission.command,
        package=package,
        environment=dict(submission.environment),
        metadata={_ID: submission.id, _MEANING: submission.meaning, _PACKAGE: package.uri},
    )
    return _followed(jobs, jobs.one(id), submission, asked, screen, typed)


def _check_same(before: Job, submission: Submission) -> None:
    """Raises ClusterError if the id is that of a job with other settings. One that failed may have failed because of them."""
    same = before.metadata[_MEANING] == submission.meaning if _MEANING in before.metadata else before.command == submission.command
    if not same and before.status != "FAILED":
        raise ClusterError(
            f"{submission.id}: the name is taken by a job with other settings, {before.id} ({before.status.lower()}):\n"
            f"there  {before.command}\nhere   {submission.command}\nchoose another name, by name= or --name"
        )


def _package(submission: Submission, asked: Asked) -> Package:
    """What goes up. Raises RecipeError if files that the command names are not among it."""
    from cluster.upload import package_of

    package = package_of(submission.folder, asked.excludes)
    with contextlib.chdir(submission.folder):
        missing = [
            f"{setting} {text}: {why}" for setting, text in submission.local if (why := _left_out(text, submission.folder, package.files))
        ]
    if missing:
        raise RecipeError(*missing)
    return package


def _left_out(text: str, folder: Path, sent: Mapping[str, int]) -> str | None:
    """Why a job would not find what `text` names; None if it would."""
    instead = "name it by an absolute path or a URI that every node reaches"
    for file in files.find(text):
        place = Path(file.uri)
        if not place.is_relative_to(folder):
            return f"lies outside {folder}, so it does not go up; {instead}"
        if (name := str(place.relative_to(folder))) not in sent:
            return f"{name} is left out of what goes up, by .gitignore, .rayignore or --exclude; {instead}, or let it go up"
    return None


def _followed(jobs: Jobs, job: Job, submission: Submission, asked: Asked, screen: Screen, typed: str) -> dict[str, Any]:
    """The job to its end, what it writes on the screen; or as it is, where nobody waits or Ctrl-C ends the waiting."""
    how = f"follow it: {typed}\nstop it:   raylway submit --address {shown(jobs.address)} --stop {job.id}"
    if not asked.wait:
        screen.say(f"{job.id}: {job.status.lower()}\n{how}")
        return _outcome(jobs, job, submission)
    try:
        job = jobs.follow(job.id, screen.copy)
    except KeyboardInterrupt:
        screen.say(f"\n{job.id}: no longer followed; it goes on\n{how}")
        return _outcome(jobs, jobs.one(job.id), submission, detached=True)
    except ClusterError as error:
        raise ClusterError(f"{error}\nfollow it again, or go on with it: {typed}") from None
    screen.say(f"{job.id}: {_ended(job)}")
    if job.status != "SUCCEEDED":
        screen.say(f"go on with it: {typed}")
    return _outcome(jobs, job, submission)


def _outcome(jobs: Jobs, job: Job, submission: Submission, *, detached: bool = False) -> dict[str, Any]:
    wanted = submission.as_json and job.over
    return {"address": shown(jobs.address), **_told(job), "detached": detached, "result": _result_in(jobs.log(job.id)) if wanted else None}


def _result_in(log: str) -> dict[str, Any] | None:
    """The JSON object that a command writes as its last line."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    with contextlib.suppress(ValueError):
        found = json.loads(last)
        return found if isinstance(found, dict) else None
    return None


def _jobs(address: str | None) -> Jobs:
    found = address_of(address, os.environ)
    from cluster.jobs import Jobs

    return Jobs(found)


def _found(jobs: Jobs, id: str) -> Job:
    """The job that an id means: of several goes at the same, the newest. Raises ClusterError."""
    return _newest(jobs.all(), id) or jobs.one(id)


def _newest(every: Sequence[Job], id: str) -> Job | None:
    return next((job for job in reversed(every) if job.metadata.get(_ID, job.id) == id), None)


def _free(every: Sequence[Job], id: str) -> str:
    """An id that no job has: Ray's are used once."""
    used = {job.id for job in every}
    return next(each for each in _numbered(id) if each not in used)


def _numbered(id: str) -> Iterator[str]:
    yield id
    number = 2
    while True:
        yield f"{id}-{number}"
        number += 1


def _options(asked: Asked) -> list[str]:
    named = ["--name", asked.name] if asked.name else []
    folder = ["--working-dir", str(asked.folder)] if asked.folder != Path() else []
    return [*named, *folder, *(word for each in asked.excludes for word in ("--exclude", each))]


def _told(job: Job) -> dict[str, Any]:
    return {"submission_id": job.id, "status": job.status, "exit_code": job.exit_code, "command": redact(job.command)}


def _ended(job: Job) -> str:
    """How a job stands, or how it ended, in a few words."""
    if job.status != "FAILED":
        return {"SUCCEEDED": "finished"}.get(job.status, job.status.lower())
    if job.exit_code is None:
        return f"failed: {_cause(job.message)}"
    return f"failed with exit code {job.exit_code}" if job.exit_code > 0 else f"its process was killed by signal {-job.exit_code}"


def _cause(message: str) -> str:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in message.splitlines() if line.strip()]
    return redact(lines[0])[:300] if lines else "Ray does not say why"


def _exit(job: Job) -> str:
    return "" if job.exit_code is None else str(job.exit_code)


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "?"


def _took(job: Job) -> str:
    return f"{(job.ended or time.time()) - job.began:,.0f} s"


def _show_end(jobs: Jobs, job: Job, screen: Screen) -> None:
    screen.say("\n".join(f"  {redact(line)}" for line in jobs.log(job.id).splitlines()[-_TAIL_LINES:]))
