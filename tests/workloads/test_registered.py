"""Every recipe's model, once registered, answers raw input in a process that has neither this repository nor the run's folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pipelines import config
from pipelines.data import preparation
from pipelines.tracking import registry
from pipelines.tracking.client import connect
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

pytestmark = pytest.mark.long  # a predicted row is the served model's: tests/pipelines/verbs/test_predict.py


class Registered(NamedTuple):
    """A registry with a model of each recipe, and by recipe what the model says here and what it was given."""

    tracking_uri: str
    here: dict[str, pd.DataFrame]
    given: dict[str, Any]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, storage: Path) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = connect(uri)
    experiment = client.create_experiment("all", artifact_location=(folder / "artifacts").as_uri())
    here, given = {}, {}
    for recipe in config.recipes():
        run = runs.load(storage, recipe=recipe)
        dataset = preparation.prepare(run, preparation.plan(run), preparation.in_process)
        encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
        torch.manual_seed(0)
        network = run.model.network(encoding)
        save_file({name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}, folder / "weights")
        trained = registry.Trained(run.model, encoding, folder / "weights", dataset.sample)
        registry.register(uri, trained, run_id=client.create_run(experiment).info.run_id, name=recipe, tags={})
        client.set_registered_model_alias(recipe, "champion", "1")
        given[recipe] = run.model.serving(encoding).example(dataset.sample)
        here[recipe] = Served(run.model, encoding, network).predict(given[recipe])
    return Registered(uri, here, given)


@pytest.fixture(scope="module")
def answers(registered: Registered) -> tuple[dict[str, Any], dict[str, Any], list]:
    """By recipe: what its model says here; what it says there; modules of ours that were loaded there."""
    uris = {recipe: f"models:/{recipe}@champion" for recipe in registered.here}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK, registered.tracking_uri, *uris.values()],
        cwd=Path(registered.tracking_uri.removeprefix("sqlite:///")).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return registered.here, {recipe: told["told"][uri] for recipe, uri in uris.items()}, told["ours"]


def test_nothing_of_the_repository_was_loaded(answers: tuple[dict, dict, list]) -> None:
    assert answers[2] == []


@pytest.mark.parametrize("recipe", config.recipes())
def test_the_answers_are_those_given_here(recipe: str, answers: tuple[dict, dict, list]) -> None:
    agree(answers[0][recipe], answers[1][recipe])


def agree(here: pd.DataFrame, there: dict[str, list]) -> None:
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


# ---- the standard road: `mlflow models serve`


def bodies(given: Any) -> list[dict[str, Any]]:
    """The JSON that a person posts, in the forms that MLflow documents: for a table or texts all of them, for arrays `inputs`."""
    if not hasattr(given, "columns"):
        return [{"inputs": given.tolist()}]
    rows = given.to_dict("records")
    split = {"columns": list(given.columns), "data": given.to_numpy().tolist()}
    return [{"dataframe_records": rows}, {"dataframe_split": split}, {"inputs": rows}, {"inputs": given.to_dict("list")}]


def told(answer: dict[str, Any]) -> dict[str, list]:
    return {name: [row[name] for row in answer["predictions"]] for name in answer["predictions"][0]}


@pytest.mark.parametrize("recipe", config.recipes())
def test_a_posted_json_of_raw_input_is_answered_in_every_form(recipe: str, registered: Registered) -> None:
    """By MLflow's own scoring application, in this process."""
    import mlflow
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    connect(registered.tracking_uri)
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(f"models:/{recipe}@champion")))
    assert client.get("/ping").status_code == 200
    for body in bodies(registered.given[recipe]):
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        agree(registered.here[recipe], told(answer.json()))
    refused = client.post("/invocations", json={"inputs": [["what nobody asks"]]})
    assert refused.status_code == 400


@pytest.mark.services
@pytest.mark.parametrize("recipe", config.recipes())
def test_mlflow_models_serve_answers_on_loopback(recipe: str, registered: Registered, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": registered.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # MLflow looks for uvicorn there
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{recipe}@champion", "--env-manager", "local"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        answered(f"http://127.0.0.1:{port}/ping", None, tmp_path / "log")
        for body in bodies(registered.given[recipe]):
            agree(registered.here[recipe], told(answered(f"http://127.0.0.1:{port}/invocations", body, tmp_path / "log")))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answered(url: str, body: dict[str, Any] | None, log: Path) -> Any:
    """The JSON that a server gives, waited for until it is up."""
    data = None if body is None else json.dumps(body).encode()
    deadline = time.monotonic() + 90
    while True:
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
            return json.loads(text) if text.strip() else None
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
