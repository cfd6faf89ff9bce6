"""Every recipe's model, once registered, answers raw input in a process that has neither this repository nor the run's folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines import config, prepare
from pipelines.tracking import registry
from pipelines.tracking.mlflow import connect
from tests import runs
from workloads.served import Served

ASK = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
told = {}
for uri in sys.argv[2:]:
    model = mlflow.pyfunc.load_model(uri)
    answers = model.predict(model.input_example)
    told[uri] = {name: json.loads(answers[name].to_json(orient="values")) for name in answers.columns}
ours = sorted(name for name in sys.modules if name.split(".")[0] in ("workloads", "pipelines", "cluster"))
print(json.dumps({"told": told, "ours": ours}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, storage: Path) -> tuple[dict[str, Any], dict[str, Any], list]:
    """By recipe: what its model says here; what it says there; modules of ours that were loaded there."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect(uri)
    experiment = client.create_experiment("all", artifact_location=(folder / "artifacts").as_uri())
    here, uris = {}, {}
    for recipe in config.recipes():
        run = runs.load(storage, recipe=recipe)
        dataset = prepare.prepare(run, prepare.plan(run), prepare.in_process)
        encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
        torch.manual_seed(0)
        network = run.model.network(encoding)
        save_file({name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}, folder / "weights")
        run_id = client.create_run(experiment).info.run_id
        registered = registry.register(
            uri,
            run_id=run_id,
            name=recipe,
            workload=run.model,
            encoding=encoding,
            weights=folder / "weights",
            sample=dataset.sample,
            tags={},
        )
        here[recipe] = Served(run.model, encoding, network).predict(run.model.model_input(dataset.sample))
        uris[recipe] = registered.uri
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK, uri, *uris.values()], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return here, {recipe: told["told"][uri] for recipe, uri in uris.items()}, told["ours"]


def test_nothing_of_the_repository_was_loaded(answers: tuple[dict, dict, list]) -> None:
    assert answers[2] == []


@pytest.mark.parametrize("recipe", config.recipes())
def test_the_answers_are_those_given_here(recipe: str, answers: tuple[dict, dict, list]) -> None:
    here, there = answers[0][recipe], answers[1][recipe]
    assert list(here.columns) == list(there)
    assert len(here) > 0
    for name in here.columns:
        if isinstance(here[name].iloc[0], str):
            assert here[name].tolist() == there[name]
        else:
            np.testing.assert_allclose(np.array(here[name].tolist()), np.array(there[name]), rtol=1e-5, atol=1e-6)


def test_whole_numbers_and_gaps_are_answered_too(answers: tuple[dict, dict, list], tmp_path: Path) -> None:
    """MLflow itself would refuse them for columns that held fractions when the model was registered."""
    import mlflow

    model = mlflow.pyfunc.load_model("models:/mlp_binary/1")
    table = model.input_example
    whole = table.round().astype(dict.fromkeys(table.columns[:5], "int64"))
    assert len(model.predict(whole)) == len(table)
    gaps = table.copy()
    gaps.iloc[0, 0] = None
    assert len(model.predict(gaps)) == len(table)
    with pytest.raises(Exception, match="mean_radius"):
        model.predict(table.drop(columns="mean_radius"))
