"""Who is champion of a model: a log of promotions, of which the alias `champion` is the reading.

MLflow moves an alias without asking where it stood (3.17): of two promoters that judged against the same champion, both would win. What it
does one at a time is to number the versions of a registered model. So each promotion is a version of `NAME (promotions)`, whose tags say
which entry it follows (`after`): the first entry that follows the last one is the next, and any other that follows the same has lost. All
who read the log come to the same answer, so exactly one of many wins, through nothing but MLflow's API, on a database or a server.

The alias is set after that, by the winner, and by whoever finds that the winner died before it could. An alias that people move by hand
cannot be fenced off; it is noticed, and believed: what they chose is the champion that the next candidate is judged against.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipelines.errors import RecipeError, StorageError
from pipelines.tracking import provenance, versions
from pipelines.tracking.shipper import user
from pipelines.tracking.versions import PROMOTIONS

if TYPE_CHECKING:
    from mlflow import MlflowClient

R = TypeVar("R")
CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
_AFTER, _VERSION, _WAS, _KIND, _REASON, _BY, _DONE = (
    f"raylway.{name}" for name in ("after", "version", "was", "kind", "reason", "by", "done")
)
_ATTEMPTS, _PAUSE_SECONDS = 30, 0.05
_REASON_LETTERS = 500
PROMOTED, FORCED, ROLLED_BACK = "promoted", "forced", "rolled back"


class Conflict(Exception):
    """The champion changed between judging and promoting."""


@dataclass(frozen=True)
class Entry:
    """A promotion: the number of its entry, the entry it follows, who became champion and who was it before, and why."""

    number: int
    after: int
    version: int
    was: int | None
    kind: str
    reason: str
    by: str
    done: bool
    """Whether the alias was set."""


@dataclass(frozen=True)
class Seen:
    """How things stand: what a promoter judges against, and must find unchanged when it promotes."""

    head: int
    """The last entry of the log; 0 where there is none."""
    champion: int | None
    previous: int | None
    lost: int | None
    """The version that the log says is champion, where its alias is gone: deleted, by itself or with the version."""


def seen(client: MlflowClient, name: str) -> Seen:
    """How things stand, once a promotion whose promoter died has been brought to its end."""
    entries = history(client, name)
    if entries and not entries[-1].done:
        _settle(client, name)
        entries = history(client, name)
    now = versions.aliases(client, name)
    champion = now.get(CHAMPION)
    lost = entries[-1].version if entries and champion is None else None
    return Seen(entries[-1].number if entries else 0, champion, now.get(PREVIOUS), lost)


def history(client: MlflowClient, name: str) -> list[Entry]:
    """The promotions that won, in order."""
    won: list[Entry] = []
    for entry in _written(client, name):
        if not won or entry.after == won[-1].number:
            won.append(entry)
    return won


def promote(client: MlflowClient, name: str, version: int, *, judged_against: Seen, kind: str = PROMOTED, reason: str = "") -> Entry:
    """Make `version` champion, if the champion is still the one judged against. Raises Conflict, naming who it is now.

    Raises RecipeError for a version that is not there: an entry of the log cannot be taken back.
    """
    if not versions.has(client, name, version):
        raise RecipeError(versions.unknown(client, name, str(version)))
    if versions.aliases(client, name).get(CHAMPION) != judged_against.champion:
        raise _conflict(client, name, judged_against)
    was = "" if judged_against.champion is None else str(judged_against.champion)
    tags = {_AFTER: str(judged_against.head), _VERSION: str(version), _WAS: was, _KIND: kind, _BY: user()}
    tags[_REASON] = provenance.redact(reason)[:_REASON_LETTERS]
    number = _append(client, name, version, tags)
    entry = next((entry for entry in history(client, name) if entry.number == number), None)
    if entry is None:
        raise _conflict(client, name, judged_against)
    _settle(client, name)
    return entry


def roll_back(client: MlflowClient, name: str, *, reason: str = "") -> Entry:
    """Make the champion before this one champion again. Raises RecipeError if there is none, Conflict if it changed meanwhile."""
    now = seen(client, name)
    before = [version for version in _reign(client, name, history(client, name), now.champion) if version != now.champion]
    if not before:
        raise RecipeError(f"models:/{name} has no previous champion to go back to")
    return promote(client, name, before[-1], judged_against=now, kind=ROLLED_BACK, reason=reason)


def _settle(client: MlflowClient, name: str) -> None:
    """Set the aliases as the log says, until nobody has added to it meanwhile: the last to write has read what it wrote."""
    while True:
        entries = history(client, name)
        last = entries[-1]
        reign = _reign(client, name, entries, last.version)
        if len(reign) > 1:
            _point(client, name, PREVIOUS, reign[-2])
        else:
            _insisting(lambda: client.delete_registered_model_alias(name, PREVIOUS))
        if versions.has(client, name, last.version):  # else it was deleted meanwhile, which the next to look is told
            _point(client, name, CHAMPION, last.version)
        _done(client, name, last.number)
        if history(client, name)[-1].number == last.number:
            return


def _point(client: MlflowClient, name: str, alias: str, version: int) -> None:
    _insisting(lambda: client.set_registered_model_alias(name, alias, str(version)))


def _done(client: MlflowClient, name: str, number: int) -> None:
    _insisting(lambda: client.set_model_version_tag(name + PROMOTIONS, str(number), _DONE, "true"))


def _reign(client: MlflowClient, name: str, entries: Sequence[Entry], champion: int | None) -> list[int]:
    """The champions one above another, as promotions put them there and rollbacks took them off; of those whose version still is."""
    stack: list[int] = []
    for entry in entries:
        if entry.was is not None and (not stack or stack[-1] != entry.was):  # moved by hand, or there before the log
            stack.append(entry.was)
        if entry.kind == ROLLED_BACK and entry.version in stack[:-1]:
            while stack[-1] != entry.version:
                stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    if champion is not None and (not stack or stack[-1] != champion):
        stack.append(champion)
    there = {int(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    return [version for version in stack if version in there]


def _written(client: MlflowClient, name: str) -> list[Entry]:
    """Every entry, those that lost as well, in order."""
    found = []
    page: str | None = None
    while page is None or page:
        answer = client.search_model_versions(f"name = '{name}{PROMOTIONS}'", page_token=page)
        found += [(int(version.version), dict(version.tags)) for version in answer]
        page = answer.token or ""
    return [
        Entry(
            number=number,
            after=int(tags[_AFTER]),
            version=int(tags[_VERSION]),
            was=int(tags[_WAS]) if tags.get(_WAS) else None,
            kind=tags.get(_KIND, ""),
            reason=tags.get(_REASON, ""),
            by=tags.get(_BY, ""),
            done=_DONE in tags,
        )
        for number, tags in sorted(found, key=lambda one: one[0])
        if _AFTER in tags
    ]


def _append(client: MlflowClient, name: str, version: int, tags: dict[str, str]) -> int:
    """Write an entry; its number."""
    log, model = name + PROMOTIONS, f"models:/{name}/{version}"
    told = f"{tags[_KIND]}: version {version} after {tags[_WAS] or 'none'}. {tags[_REASON]}".strip()
    _insisting(lambda: _make(client, log, name))
    return int(_insisting(lambda: client.create_model_version(log, model, tags=tags, description=told)).version)


def _insisting(write: Callable[[], R]) -> R:
    """Several who write at once are told by the database that another was first (MLflow 3.17 raises what it said), and try again."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        try:
            return write()
        except MlflowException as error:
            trouble = error.message
            time.sleep(_PAUSE_SECONDS * (1 + attempt) * random.random())
    raise StorageError(f"the promotion could not be written: {provenance.redact(trouble).splitlines()[0]}")


def _make(client: MlflowClient, log: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(log, description=f"The log of who was champion of `{name}`, and why. Written by raylway promote.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _conflict(client: MlflowClient, name: str, judged_against: Seen) -> Conflict:
    now = seen(client, name).champion
    before = "there was none" if judged_against.champion is None else f"it was version {judged_against.champion}"
    is_now = "there is none" if now is None else f"it is version {now}"
    return Conflict(f"models:/{name}@champion changed while the candidate was judged: {before}, {is_now}; give the command again")
