"""Models on a server: judged and promoted from elsewhere, and promoted by many at once."""

from __future__ import annotations

import pytest

from pipelines.tracking import lookup, promotions
from pipelines.tracking.client import connect
from tests import promoter
from tests.cli import CPU_QUICK, raylway

pytestmark = pytest.mark.services


def test_a_model_on_a_server_is_judged_and_promoted_from_another_folder(server, tmp_path):
    """Its run's folder and its data are out of reach, so its files are fetched and its data prepared anew."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    where = (f"track.uri={server.uri}", *CPU_QUICK)
    for steps in (15, 200):
        code, _, err = raylway("train", "cnn", f"train.steps={steps}", "track.experiment=judged", *where, cwd=here, **server.login)
        assert code == 0, err
    (here / "runs").rename(here / "moved")
    elsewhere = server.login | {"XDG_CACHE_HOME": str(there)}
    code, result, err = raylway("evaluate", "models:/cnn@candidate", *where, "--json", cwd=there, **elsewhere)
    assert code == 0, err
    assert result["run_url"].startswith(server.uri)
    code, promoted, err = raylway("promote", "cnn", *where, "--json", cwd=there, **elsewhere)
    assert (code, promoted["champion"], promoted["previous"]) == (0, 2, 1), err
    assert list(there.glob("raylway/models/*/data/model/weights.safetensors"))
    assert not list(there.rglob("*.py")), "the code that travels with a model is not even fetched"


def test_of_eight_promoters_of_one_storage_through_a_server_exactly_one_wins(server, tmp_path):
    client = promoter.registry(server.uri, count=9)
    promotions.promote(client, "race", 1, judged_against=promotions.standing(client, "race"), storage=tmp_path)
    said = promoter.raced(server.uri, list(range(2, 10)), tmp_path / "gate")
    winners = [version for version, text in zip(range(2, 10), said, strict=True) if text == "won"]
    assert len(winners) == 1, said
    assert lookup.aliases(connect(server.uri), "race") == {"champion": winners[0], "previous": 1}
