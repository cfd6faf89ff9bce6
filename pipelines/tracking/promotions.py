"""Promotions: compare-and-set of the alias `champion`, and the history of promotions in tags of the registered model.

MLflow moves an alias unconditionally (3.17): of two promoters that judged against the same champion, both would win. So a promoter takes
a lock in the storage folder, checks that the champion is still the one it judged against, and only then moves the alias: of many in one
storage exactly one wins, and the kernel frees the lock of one that was killed. Nodes share the lock where their file system shares
`flock` (NFS 4, Lustre mounted with it).

Two storages on one MLflow server have a lock each. Either refuses a candidate that was judged before the other's promotion was done. But
two promotions in the same fraction of a second can both move the alias: the last is champion, and the history may lack the first.

The alias is moved before the history is written. A promoter killed before that has changed no champion; one killed after it leaves a
champion without an entry, which counts like one that a person set by hand: the next candidate is judged against it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines.errors import RecipeError
from pipelines.sealed import locked
from pipelines.tracking import lookup, provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
PROMOTED, FORCED, ROLLED_BACK = "promoted", "forced", "rolled back"
FIRST = "the first of its name"
_TAG = "raylway.promotion."
"""Prefix of the registered model's tags that hold the history; the entry's number follows."""
_REASON_LETTERS = 500


class Conflict(Exception):
    """The champion changed between judging and promoting."""


@dataclass(frozen=True)
class Entry:
    """A promotion: its number, the version that became champion, the champion before it, the reason and the person."""

    number: int
    version: int
    was: int | None
    kind: str
    reason: str
    by: str


@dataclass(frozen=True)
class Standing:
    """The champion of a model and the state of its history, which must be unchanged between judging and promoting."""

    head: int
    """Number of the last promotion; 0 where there was none."""
    champion: int | None
    previous: int | None
    lost: int | None
    """The version that was promoted last, if the alias `champion` was deleted since, by itself or with the version."""


def standing(client: MlflowClient, name: str) -> Standing:
    """The champion and the last promotion now."""
    entries, aliases = history(client, name), lookup.aliases(client, name)
    champion = aliases.get(CHAMPION)
    lost = entries[-1].version if entries and champion is None else None
    return Standing(entries[-1].number if entries else 0, champion, aliases.get(PREVIOUS), lost)


def history(client: MlflowClient, name: str) -> list[Entry]:
    """All promotions in order, first those that earlier releases logged."""
    tags = client.get_registered_model(name).tags
    kept = sorted((int(key.removeprefix(_TAG)), value) for key, value in tags.items() if key.startswith(_TAG))
    return [*_logged_before(client, name), *(Entry(number, **json.loads(value)) for number, value in kept)]


def promote(
    client: MlflowClient, name: str, version: int, *, judged_against: Standing, storage: Path, kind: str = PROMOTED, reason: str = ""
) -> Entry:
    """Make `version` champion, if the champion is still the one judged against.

    Raises Conflict, which names the champion now, if it is not, and RecipeError for a version that is not registered.
    """
    with locked(storage / ".promotions" / f"{quote(name, safe='')}.lock"):
        if version not in lookup.versions(client, name):
            raise RecipeError(lookup.unknown_version(client, name, str(version)))
        now = standing(client, name)
        if (now.head, now.champion) != (judged_against.head, judged_against.champion):
            before = "there was none" if judged_against.champion is None else f"it was version {judged_against.champion}"
            is_now = "there is none" if now.champion is None else f"it is version {now.champion}"
            raise Conflict(f"models:/{name}@champion changed while the candidate was judged: {before}, {is_now}; give the command again")
        entry = Entry(now.head + 1, version, now.champion, kind, provenance.redact(reason)[:_REASON_LETTERS], provenance.user())
        reign = _reign(client, name, [*history(client, name), entry])
        if len(reign) > 1:
            client.set_registered_model_alias(name, PREVIOUS, str(reign[-2]))
        elif now.previous is not None:
            client.delete_registered_model_alias(name, PREVIOUS)
        client.set_registered_model_alias(name, CHAMPION, str(version))
        kept = asdict(entry)
        client.set_registered_model_tag(name, f"{_TAG}{kept.pop('number'):05}", json.dumps(kept))
    return entry


def promote_first(client: MlflowClient, name: str, version: int, *, storage: Path) -> None:
    """Make `version` champion if `name` has had none."""
    now = standing(client, name)
    if now.champion is None and not now.head:
        with suppress(Conflict):  # another was first
            promote(client, name, version, judged_against=now, storage=storage, reason=FIRST)


def roll_back(client: MlflowClient, name: str, *, storage: Path, reason: str = "") -> Entry:
    """Make the previous champion champion again. Raises RecipeError if there is none, Conflict if the champion changed meanwhile."""
    now = standing(client, name)
    before = [version for version in _reign(client, name, history(client, name), now.champion) if version != now.champion]
    if not before:
        raise RecipeError(f"models:/{name} has no previous champion to go back to")
    return promote(client, name, before[-1], judged_against=now, storage=storage, kind=ROLLED_BACK, reason=reason)


def _reign(client: MlflowClient, name: str, entries: Sequence[Entry], champion: int | None = None) -> list[int]:
    """The stack of champions, the current one last: promotions push, rollbacks pop. Versions that were deleted are left out."""
    stack: list[int] = []
    for entry in entries:
        if entry.was is not None and (not stack or stack[-1] != entry.was):  # moved by hand, or there before the history
            stack.append(entry.was)
        if entry.kind == ROLLED_BACK and entry.version in stack[:-1]:
            while stack[-1] != entry.version:
                stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    if champion is not None and (not stack or stack[-1] != champion):
        stack.append(champion)
    present = lookup.versions(client, name)
    return [version for version in stack if version in present]


def _logged_before(client: MlflowClient, name: str) -> list[Entry]:
    """Promotions that earlier releases logged as versions of `NAME (promotions)`; of several after the same entry the first one counts."""
    won: list[Entry] = []
    for version in sorted(client.search_model_versions(f"name = '{name}{lookup.OLD_LOG}'"), key=lambda one: int(one.version)):
        tags = {key.removeprefix("raylway."): value for key, value in version.tags.items()}
        if "after" in tags and (not won or int(tags["after"]) == won[-1].number):
            was = int(tags["was"]) if tags.get("was") else None
            kind, reason, by = (tags.get(key, "") for key in ("kind", "reason", "by"))
            won.append(Entry(int(version.version), int(tags["version"]), was, kind, reason, by))
    return won
