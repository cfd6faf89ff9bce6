"""Nothing that lies in a storage or a registry is run, and no secret is written down: tried with planted canaries on whole commands."""

from __future__ import annotations

import io
import json
import os
import pickle
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.data.embedded import breast_cancer
from pipelines.errors import code_of
from pipelines.screen import Screen
from pipelines.tracking.client import connect
from pipelines.verbs import predict as predicting
from tests.cli import CPU_QUICK, raylway
from tests.s3 import s3
from tests.trained import storage_with, trained

__all__ = ["s3"]
TABLE = ("mlp_binary", "train.steps=20")
NAMES = ("python_model.pkl", "model.pkl", "data.pkl", "model.pt", "weights.pt", "state.pkl", "artifacts.joblib", "sitecustomize.py")


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def original(tmp_path_factory, empty_database):
    folder = storage_with(tmp_path_factory.mktemp("secure"), empty_database)
    trained(folder, "name=first", recipe="mlp_binary")
    trained(folder, "name=unregistered", "track.register=false", recipe="mlp_binary")
    return folder


@pytest.fixture
def storage(original, tmp_path):
    """A copy of a storage, its database naming the copied files, so that a test may damage it."""
    copy = tmp_path / "storage"
    shutil.copytree(original, copy)
    with sqlite3.connect(copy / "mlflow.db") as database:
        for table, column in [("logged_models", "artifact_location"), ("runs", "artifact_uri"), ("experiments", "artifact_location")]:
            database.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(original), str(copy)))
        database.execute("update tags set value = replace(value, ?, ?) where key = 'raylway.folder'", (str(original), str(copy)))
    return copy


@pytest.fixture
def canary(tmp_path):
    """A file's content that makes `canary.path` when it is unpickled, and Python code that does so when it is imported."""
    found = Canary(tmp_path / "canary")
    pickle.loads(pickle.dumps(found))  # noqa: S301
    found.path.rmdir()  # it sings
    return found


def planted(folder: Path, canary: Canary) -> None:
    """Pickles, and code, under every name that some tool would load by itself, in `folder` and all below it."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in NAMES:
            code = f"import os; os.mkdir({str(canary.path)!r})\n".encode()
            (place / name).write_bytes(code if name.endswith(".py") else pickle.dumps(canary))


def model_folder(storage: Path) -> Path:
    model_id = connect(f"sqlite:///{storage}/mlflow.db").get_model_version("mlp_binary", "1").source.removeprefix("models:/")
    [found] = storage.rglob(f"{model_id}/artifacts")
    return found


def outcome(of: Callable[[], object]) -> tuple[int, str]:
    """The exit code and the sentence of what is done in this process."""
    try:
        of()
    except Exception as error:
        return code_of(error), str(error)
    return 0, ""


def predict(storage: Path, *arguments: str, model: str = "models:/mlp_binary/1") -> tuple[int, str]:
    """The exit code and the sentence of a prediction."""
    target, settings = storage.parent / f"out-{secrets.token_hex(4)}.csv", [f"storage={storage}", *arguments, *CPU_QUICK]
    code, sentence = outcome(lambda: predicting.predict(model, "breast_cancer", str(target), settings, screen=Screen()))
    assert target.exists() == (code == 0)
    return code, sentence


def test_what_is_planted_in_a_registered_model_is_not_run(storage, canary):
    folder = model_folder(storage)
    for code in folder.rglob("raylway_workloads_*/**/*.py"):
        code.write_text(f"import os; os.mkdir({str(canary.path)!r})\n")
    planted(folder, canary)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"] = {"loader_module": "mlflow.sklearn", "model_path": "model.pkl", "code": "code"}
    described["flavors"]["sklearn"] = {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    code, err = predict(storage)
    assert (code, canary.path.exists()) == (0, False), err


@pytest.mark.parametrize("name", ["data/model/weights.safetensors", "data/model/model.json", "MLmodel"])
def test_a_pickle_in_the_place_of_a_registered_file_is_refused(storage, canary, name):
    (model_folder(storage) / name).write_bytes(pickle.dumps(canary))
    code, err = predict(storage)
    assert (code, canary.path.exists()) == (12, False), err
    assert ("its content is not what was registered" if "weights" in name else "damaged") in err


@pytest.mark.parametrize("kind", ["os:system", "base:Workload", "served:Served", "..evil:Evil", "tasks.pictures:Image"])
def test_a_model_of_another_class_than_ours_is_refused(storage, canary, kind):
    (storage.parent / "evil.py").write_text(f"import os; os.mkdir({str(canary.path)!r})\n")
    file = model_folder(storage) / "data" / "model" / "model.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"class": kind}))
    code, err = predict(storage)
    assert (code in (2, 12), canary.path.exists()) == (True, False), err


def test_what_is_planted_beside_checkpoints_and_prepared_data_is_not_run(storage, canary):
    run = storage / "mlp_binary" / "unregistered"
    planted(run, canary)
    planted(storage / "datasets", canary)
    code, err = predict(storage, model="unregistered")
    assert (code, canary.path.exists()) == (0, False), err
    (run / "result.json").unlink()  # as if killed before its end: the same command resumes
    train = ("train", *TABLE, "train.steps=60", f"storage={storage}", "track.register=false", "name=unregistered")
    code, _, err = raylway(*train, *CPU_QUICK, cwd=storage.parent)
    assert (code, canary.path.exists()) == (0, False), err


def test_a_pickle_in_the_place_of_a_checkpoint_s_weights_is_refused(storage, canary):
    for file in (storage / "mlp_binary" / "unregistered" / "checkpoints").rglob("model.safetensors"):
        file.write_bytes(pickle.dumps(canary))
    code, err = predict(storage, model="unregistered")
    assert (code, canary.path.exists()) == (12, False), err
    assert "has no checkpoint that can be trusted" in err


@pytest.mark.parametrize("name", ["*.arrow", "manifest.json"])
def test_a_pickle_in_the_place_of_prepared_data_is_refused(storage, canary, name):
    files = [file for file in (storage / "datasets").rglob(name) if ".parsed" not in file.parts]
    assert files
    for file in files:
        file.write_bytes(pickle.dumps(canary))
    code, err = outcome(lambda: trained(storage, "name=other", recipe="mlp_binary"))
    assert (code, canary.path.exists()) == (13, False), err


def test_a_pickle_in_the_place_of_a_job_s_card_is_refused(storage, canary, tmp_path):
    target, settings = tmp_path / "out", [f"storage={storage}", *CPU_QUICK]
    target.mkdir()
    (target / "_job.json").write_bytes(pickle.dumps(canary))
    code, err = outcome(lambda: predicting.predict("mlp_binary", "breast_cancer", str(target), settings, screen=Screen()))
    assert (code, canary.path.exists()) == (12, False), err
    assert "_job.json: damaged" in err


# ---- secrets


def everything_written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_no_secret_of_an_address_or_the_environment_is_written_anywhere(s3, tmp_path, empty_database, monkeypatch):
    planted = {name: f"canary{secrets.token_hex(8)}" for name in ("password", "tracking", "token", "key")}
    monkeypatch.setenv("SOME_SERVICE_TOKEN", planted["token"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", planted["key"])
    s3.create_bucket(Bucket="kept")
    content = io.BytesIO()
    pd.DataFrame(breast_cancer()).to_parquet(content)
    s3.put_object(Bucket="kept", Key="in.parquet", Body=content.getvalue())
    place = f"s3://someone:{planted['password']}@kept"
    storage = storage_with(tmp_path, empty_database)
    given = (f"storage={storage}", *CPU_QUICK)
    said = []
    for command, code in [
        (("train", *TABLE, f"data.source={place}/in.parquet", *given), 0),
        (("predict", "mlp_binary", f"{place}/in.parquet", f"{place}/out.csv", *given), 0),
        (("predict", "mlp_binary", f"{place}/in.parquet", f"{place}/out.csv", "data.on_bad_row=skip", *given), 12),
        (("predict", "mlp_binary", f"{place}/nothing.parquet", f"{place}/other.csv", *given), 13),
        (("predict", "mlp_binary", f"{place}/in.parquet", f"{place}/out.xlsx", *given), 2),
        (("train", *TABLE, f"data.source={place}/nothing.parquet", *given), 13),
        (("predict", "mlp_binary", "digits", "x.csv", f"track.uri=http://me:{planted['tracking']}@127.0.0.1:9", *given), 12),
        (("train", *TABLE, f"track.uri=http://me:{planted['tracking']}@127.0.0.1:9", *given), 12),
        (("train", *TABLE, f"data.source={place}/in.parquet", "storage=/proc/nowhere", *CPU_QUICK), 12),
    ]:
        done, result, err = raylway(*command, "--json", cwd=storage, MLFLOW_TRACKING_PASSWORD=planted["tracking"])
        assert done == code, err
        said.append(err + json.dumps(result))
    written = everything_written(storage) | everything_written(Path(os.environ["XDG_CACHE_HOME"]))
    assert "mlflow.db" in written
    for name, canary in planted.items():
        assert not [file for file, content in written.items() if canary.encode() in content], name
        assert not [text for text in said if canary in text], name


def test_no_secret_in_a_value_of_the_data_is_told_by_an_error(original, tmp_path):
    canary = secrets.token_hex(8)
    table = pd.DataFrame({name: column[:5].astype(object) for name, column in breast_cancer().items() if name != "label"})
    table.loc[2, "mean_area"] = f"https://me:{canary}@host/x"
    table.to_csv(tmp_path / "in.csv", index=False)
    done, result, err = raylway("predict", "mlp_binary", "in.csv", "out.csv", f"storage={original}", *CPU_QUICK, "--json", cwd=tmp_path)
    assert done == 13
    assert "in.csv, row 2: column mean_area" in err
    assert canary not in err + json.dumps(result)
