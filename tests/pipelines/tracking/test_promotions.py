"""Exactly one of many promoters wins, what died half-way is brought to its end, and every champion of the past can be told."""

from __future__ import annotations

import json
import shutil

import pytest

from pipelines.errors import RecipeError
from pipelines.tracking import promotions, versions
from tests import promoter


@pytest.fixture
def uri(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def promote(client, version, name="race", **more):
    return promotions.promote(client, name, version, judged_against=promotions.seen(client, name), **more)


def test_of_eight_promoters_at_once_exactly_one_wins(uri, tmp_path):
    client = promoter.registry(uri, count=9)
    promote(client, 1)
    said = promoter.raced(uri, list(range(2, 10)), tmp_path / "gate")
    winners = [version for version, text in zip(range(2, 10), said, strict=True) if text == "won"]
    assert len(winners) == 1, said
    assert versions.aliases(client, "race") == {"champion": winners[0], "previous": 1}
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
    assert versions.aliases(client, "race") == {"champion": winners[0]}


def test_whoever_judged_against_a_champion_of_the_past_is_refused(uri):
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    stale = promotions.seen(client, "race")
    promote(client, 2)
    with pytest.raises(promotions.Conflict, match=r"it was version 1, it is version 2; give the command again"):
        promotions.promote(client, "race", 3, judged_against=stale)
    assert versions.aliases(client, "race") == {"champion": 2, "previous": 1}


def test_a_champion_that_came_back_is_not_the_one_that_was_judged_against(uri):
    """1, then 2, then 1 again by a rollback: the alias is where it was, and yet all was judged before."""
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    stale = promotions.seen(client, "race")
    promote(client, 2)
    promotions.roll_back(client, "race")
    assert promotions.seen(client, "race").champion == stale.champion == 1
    with pytest.raises(promotions.Conflict):
        promotions.promote(client, "race", 3, judged_against=stale)


def test_a_promoter_that_died_before_the_alias_was_set_is_brought_to_its_end(uri, monkeypatch):
    client = promoter.registry(uri, count=2)
    promote(client, 1)

    def killed(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as context:
        context.setattr(promotions, "_settle", killed)
        with pytest.raises(SystemExit):
            promote(client, 2)
    assert versions.aliases(client, "race") == {"champion": 1}, "the entry stands, the alias does not"
    assert promotions.seen(client, "race").champion == 2
    assert versions.aliases(client, "race") == {"champion": 2, "previous": 1}


def test_rollbacks_go_down_one_by_one_and_a_promotion_up_again(uri):
    client = promoter.registry(uri, count=3)
    for version in (1, 2, 3):
        promote(client, version)
    promotions.roll_back(client, "race", reason="slow")
    assert versions.aliases(client, "race") == {"champion": 2, "previous": 1}
    promotions.roll_back(client, "race")
    assert versions.aliases(client, "race") == {"champion": 1}
    with pytest.raises(RecipeError, match="models:/race has no previous champion"):
        promotions.roll_back(client, "race")
    promote(client, 3)
    assert versions.aliases(client, "race") == {"champion": 3, "previous": 1}
    told = [(entry.version, entry.was, entry.kind, entry.reason) for entry in promotions.history(client, "race")]
    assert told[3] == (2, 3, "rolled back", "slow")
    assert len(told) == 6


def test_a_deleted_champion_takes_its_alias_along_and_that_is_noticed(uri):
    """MLflow drops a version's aliases with it (3.17)."""
    client = promoter.registry(uri, count=2)
    promote(client, 1)
    promote(client, 2)
    client.delete_model_version("race", "2")
    now = promotions.seen(client, "race")
    assert (now.champion, now.lost) == (None, 2)
    promotions.roll_back(client, "race")
    assert versions.aliases(client, "race") == {"champion": 1}


def test_a_version_that_is_not_there_enters_no_log(uri):
    client = promoter.registry(uri, count=2)
    with pytest.raises(RecipeError, match="models:/race has no version 7; it has: versions 1, 2"):
        promote(client, 7)
    assert promotions.history(client, "race") == []


def test_an_alias_that_was_moved_by_hand_is_believed(uri):
    client = promoter.registry(uri, count=3)
    promote(client, 1)
    client.set_registered_model_alias("race", "champion", "2")
    assert promotions.seen(client, "race").champion == 2
    promote(client, 3)
    assert versions.aliases(client, "race") == {"champion": 3, "previous": 2}


def test_the_log_is_no_model_that_one_could_ask_for(uri):
    client = promoter.registry(uri, count=1)
    promote(client, 1, reason="first, with token=abc123456")
    assert versions.names(client) == ["race"]
    [entry] = promotions.history(client, "race")
    assert entry.reason == "first, with token=***"
    assert json.dumps(client.get_registered_model("race (promotions)").description).count("raylway promote") == 1
