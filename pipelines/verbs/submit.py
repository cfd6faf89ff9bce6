"""Submit: a command as a job of a cluster. The same again attaches to it while it runs, goes on with it where it failed, was stopped or
was lost, and shows what came of a run that is done."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import ClusterError
from pipelines.errors import CLUSTER, INTERRUPTED, RecipeError, shown
from pipelines.jobs import ID, clock, ended, newest, show_end, signal_of, told
from pipelines.screen import Screen
from pipelines.submission import VERBS, Submission, address_of, check_sent, submission_of

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

_MEANING, _PACKAGE = "raylway.meaning", "raylway.package"
_TRIES = 5
_PROGRAM = Path(__file__).resolve().parents[1]
_LOGIN = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


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
    for name in _LOGIN:
        if os.environ.get(name):
            screen.say(f"{name} stays here; the job logs in with what the cluster's nodes have")
    from cluster.jobs import Jobs, Taken

    jobs = Jobs(address)
    typed = shlex.join(["raylway", "submit", "--address", shown(address), *_options(asked), "--", verb, *words])
    for _ in range(_TRIES):
        with contextlib.suppress(Taken):  # someone else submitted the same a moment ago: look again
            return _submitted(jobs, submission, asked, screen, typed)
    raise ClusterError(f"{submission.id}: the cluster says that this id is used, and shows no job of it; choose another by --name")


def code_of(result: Mapping[str, Any]) -> int:
    """The exit code of `submit`: the job's own; 0 where nobody waited; 130 where it was stopped, or is no longer followed."""
    if result["detached"] or result["status"] == "STOPPED":
        return INTERRUPTED
    if result["status"] != "FAILED":
        return 0
    code = result["exit_code"]
    return CLUSTER if code is None or signal_of(code) else code


def _submitted(jobs: Jobs, submission: Submission, asked: Asked, screen: Screen, typed: str) -> dict[str, Any]:
    every = jobs.all()
    before = newest(every, submission.id)
    if before:
        _check_same(before, submission)
    if before and not before.over:
        screen.say(f"{before.id}: is there already, since {clock(before.began)}")
        return _followed(jobs, before, submission, asked, screen, typed)
    from cluster.upload import package_of

    package = package_of(submission.folder, asked.excludes)
    check_sent(submission, package.files)
    done = before and before.status == "SUCCEEDED" and before.metadata.get(_PACKAGE, package.uri) == package.uri
    if before and done and submission.lasting and not asked.again:
        screen.say(f"{before.id}: finished at {clock(before.ended)}; raylway submit --again looks whether its data have changed since")
        show_end(jobs, before, screen)
        return _outcome(jobs, before, submission)
    id = _free(every, submission.id)
    again = f", after {before.id}: {ended(before)}" if before else ""
    screen.say(f"{id}: {len(package.files):,} files, {package.bytes / 1e6:,.1f} MB, to {shown(jobs.address)}{again}")
    identity = {ID: submission.id, _MEANING: submission.meaning, _PACKAGE: package.uri}
    jobs.submit(id, submission.command, package=package, environment=dict(submission.environment), metadata=identity)
    return _followed(jobs, jobs.one(id), submission, asked, screen, typed)


def _check_same(before: Job, submission: Submission) -> None:
    """Raises ClusterError if the id is that of a job with other settings. One that failed may have failed because of them."""
    same = before.metadata[_MEANING] == submission.meaning if _MEANING in before.metadata else before.command == submission.command
    if not same and before.status != "FAILED":
        raise ClusterError(
            f"{submission.id}: the name is taken by a job with other settings, {before.id} ({ended(before)}):\n"
            f"there  {before.command}\nhere   {submission.command}\nchoose another name, by name= or --name"
        )


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
    screen.say(f"{job.id}: {ended(job)}")
    if job.status != "SUCCEEDED":
        screen.say(f"go on with it: {typed}")
    return _outcome(jobs, job, submission)


def _outcome(jobs: Jobs, job: Job, submission: Submission, *, detached: bool = False) -> dict[str, Any]:
    wanted = submission.as_json and job.over
    return {"address": shown(jobs.address), **told(job), "detached": detached, "result": _result_in(jobs.log(job.id)) if wanted else None}


def _result_in(log: str) -> dict[str, Any] | None:
    """The JSON object that a command writes as its last line."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    with contextlib.suppress(ValueError):
        found = json.loads(last)
        return found if isinstance(found, dict) else None
    return None


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
    """The options that decide what is submitted, as they were typed."""
    named = ["--name", asked.name] if asked.name else []
    folder = ["--working-dir", str(asked.folder)] if asked.folder != Path() else []
    return [*named, *folder, *(word for each in asked.excludes for word in ("--exclude", each))]
