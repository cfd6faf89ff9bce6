"""Exactly one of many promoters wins, one that died half-way leaves a champion, and every champion of the past is known."""

from __future__ import annotations

import shutil

import pytest

from pipelines.errors import RecipeError
from pipelines.tracking import lookup, promotions
from tests import promoter


@pytest.fixture
def uri(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def promote(tmp_path):
    def promote(client, version, name="race", **more):
        now = promotions.standing(client, name)
        return promotions.promote(client, name, version, **{"judged_against": now, "storage": tmp_path} | more)

    return promote


@pytest.fixture
def roll_back(tmp_path):
    return lambda client, **more: promotions.roll_back(client, "race", storage=tmp_path, **more)


def test_of_eight_promoters_at_once_exactly_one_wins(uri, tmp_path, promote):
    client = promoter.registry(uri, count=9)
    promote(client, 1)
    said = promoter.raced(uri, list(range(2, 10)), tmp_path / "gate")
    winners = [version for version, text in zip(range(2, 10), said, strict=True) if text == "won"]
    assert len(winners) == 1, said
    assert lookup.aliases(client, "race") == {"champion": winners[0], "previous": 1}
    assert [entry.version for entry in promotions.history(client, "race")] == [1, winners[0]]
    losers = [text for text in said if text != "won"]
    assert len(losers) == 7
    for text in losers:
        assert f"it was version 1, it is version {winners[0]}; give the command again" in text


def test_of_several_first_ones_exactly_one_is_champion(uri, tmp_path):
    client = promoter.registry(uri, count=4)
    said = promoter.raced(uri, [1, 2, 3, 4], tmp_path / "gate")
    winners = [version for version, text in enumerate(said, start=1) if text == "won"]
    assert len(winners) == 1, said
    assert lookup.aliases(client, "race") == {"champion": winners[0]}


def test_whoever_judged_against_a_champion_of_the_past_is_refused(uri, promote):
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    stale = promotions.standing(client, "race")
    promote(client, 2)
    with pytest.raises(promotions.Conflict, match=r"it was version 1, it is version 2; give the command again"):
        promote(client, 3, judged_against=stale)
    assert lookup.aliases(client, "race") == {"champion": 2, "previous": 1}


def test_a_champion_that_came_back_is_not_the_one_that_was_judged_against(uri, promote, roll_back):
    """1, then 2, then 1 again by a rollback: the alias is where it was, and yet all was judged before."""
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    stale = promotions.standing(client, "race")
    promote(client, 2)
    roll_back(client)
    assert promotions.standing(client, "race").champion == stale.champion == 1
    with pytest.raises(promotions.Conflict):
        promote(client, 3, judged_against=stale)


@pytest.mark.parametrize("alias", ["previous", "champion"])
def test_a_promoter_that_died_half_way_leaves_one_champion_and_another_can_promote(uri, promote, roll_back, monkeypatch, alias):
    """Killed before the alias `champion` moved, it has changed none; after it, the champion is believed without an entry."""
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    moved = type(client).set_registered_model_alias

    def killed(self, name, which, version):
        moved(self, name, which, version)
        if which == alias:
            raise SystemExit("killed")

    with monkeypatch.context() as context:
        context.setattr(type(client), "set_registered_model_alias", killed)
        with pytest.raises(SystemExit):
            promote(client, 2)
    champion = {"previous": 1, "champion": 2}[alias]
    assert promotions.standing(client, "race").champion == champion
    promote(client, 3)
    assert lookup.aliases(client, "race") == {"champion": 3, "previous": champion}
    roll_back(client)
    assert lookup.aliases(client, "race")["champion"] == champion


def test_rollbacks_go_down_one_by_one_and_a_promotion_up_again(uri, promote, roll_back):
    client = promoter.registry(uri, count=3)
    for version in (1, 2, 3):
        promote(client, version)
    roll_back(client, reason="slow")
    assert lookup.aliases(client, "race") == {"champion": 2, "previous": 1}
    roll_back(client)
    assert lookup.aliases(client, "race") == {"champion": 1}
    with pytest.raises(RecipeError, match="models:/race has no previous champion"):
        roll_back(client)
    promote(client, 3)
    assert lookup.aliases(client, "race") == {"champion": 3, "previous": 1}
    told = [(entry.version, entry.was, entry.kind, entry.reason) for entry in promotions.history(client, "race")]
    assert told[3] == (2, 3, "rolled back", "slow")
    assert len(told) == 6


def test_a_deleted_champion_takes_its_alias_along_and_that_is_noticed(uri, promote, roll_back):
    """MLflow drops a version's aliases with it (3.17)."""
    client = promoter.registry(uri, count=2)
    promote(client, 1)
    promote(client, 2)
    client.delete_model_version("race", "2")
    now = promotions.standing(client, "race")
    assert (now.champion, now.lost) == (None, 2)
    roll_back(client)
    assert lookup.aliases(client, "race") == {"champion": 1}


def test_a_version_that_is_not_there_enters_no_log(uri, promote):
    client = promoter.registry(uri, count=2)
    with pytest.raises(RecipeError, match="models:/race has no version 7; it has: versions 1, 2"):
        promote(client, 7)
    assert promotions.history(client, "race") == []


def test_an_alias_that_was_moved_by_hand_is_believed(uri, promote):
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    client.set_registered_model_alias("race", "champion", "2")
    assert promotions.standing(client, "race").champion == 2
    promote(client, 3)
    assert lookup.aliases(client, "race") == {"champion": 3, "previous": 2}


def test_reasons_are_kept_without_secrets(uri, promote):
    client = promoter.registry(uri, count=1)
    promote(client, 1, reason="first, with token=abc123456")
    assert lookup.models(client) == ["race"]
    [entry] = promotions.history(client, "race")
    assert entry.reason == "first, with token=***"


def test_a_history_that_an_earlier_release_logged_is_taken_up(uri, promote, roll_back):
    """It was a registered model `NAME (promotions)`: a version for each promotion, which says the entry it follows."""
    client = promoter.registry(uri, count=4)
    client.create_registered_model("race (promotions)")
    for after, version, was in ((0, 1, ""), (1, 2, "1"), (1, 4, "1"), (2, 3, "2")):  # the third has lost against the second
        tags = {"raylway.after": str(after), "raylway.version": str(version), "raylway.was": was, "raylway.kind": "promoted"}
        client.create_model_version("race (promotions)", "s3://nowhere/model", tags=tags)
    client.set_registered_model_alias("race", "champion", "3")
    client.set_registered_model_alias("race", "previous", "2")
    assert lookup.models(client) == ["race"]
    assert [(entry.number, entry.version) for entry in promotions.history(client, "race")] == [(1, 1), (2, 2), (4, 3)]
    assert promotions.standing(client, "race") == promotions.Standing(head=4, champion=3, previous=2, lost=None)
    promote(client, 4)
    roll_back(client)
    roll_back(client)
    assert lookup.aliases(client, "race") == {"champion": 2, "previous": 1}
    assert [entry.number for entry in promotions.history(client, "race")] == [1, 2, 4, 5, 6, 7]


def test_a_promotion_that_another_storage_finished_is_noticed(uri, promote, tmp_path):
    client = promoter.registry(uri, count=3)
    judged_against = promotions.standing(client, "race")
    promote(client, 1, storage=tmp_path / "elsewhere")
    with pytest.raises(promotions.Conflict, match="there was none, it is version 1"):
        promote(client, 2, judged_against=judged_against)
