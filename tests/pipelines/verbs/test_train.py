"""Training registers and asks nobody; the command then promotes the first model of a name, also after a kill in between."""

from __future__ import annotations

import pytest

from pipelines import config
from pipelines.screen import Screen
from pipelines.tracking import lookup
from pipelines.tracking.client import connect
from pipelines.verbs.train import train
from tests.cli import raylway
from tests.trained import QUICK, SMALL, storage_with


@pytest.mark.parametrize("command", [("train", "cnn", *QUICK, *SMALL["cnn"]), ("track", "--sync")])
def test_a_model_registered_by_a_command_that_was_killed_before_promoting_is_promoted_by_the_next(command, tmp_path, empty_database):
    storage = storage_with(tmp_path, empty_database)
    result = train(config.load("cnn", [f"storage={storage}", *QUICK, *SMALL["cnn"]]), screen=Screen(as_json=True))

    def aliases() -> dict[str, int]:
        return lookup.aliases(connect(f"sqlite:///{storage}/mlflow.db"), "cnn")

    assert aliases() == {"candidate": 1}
    code, again, err = raylway(*command, f"storage={storage}", "--json", cwd=tmp_path)
    assert code == 0, err
    assert aliases() == {"candidate": 1, "champion": 1}
    assert command[0] == "track" or again == result
