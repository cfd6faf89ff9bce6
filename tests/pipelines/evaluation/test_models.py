"""A model is found by whatever a person calls it, is loaded as data only, and is refused where it is not what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import RecipeError, StorageError
from pipelines.evaluation import models
from pipelines.tracking.client import connect
from pipelines.training import checkpoint
from tests.trained import storage_with, trained


@pytest.fixture(scope="module")
def storage(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("models"), empty_database)


@pytest.fixture(scope="module")
def first(storage):
    return trained(storage, "name=first")


@pytest.fixture(scope="module")
def second(storage, first):
    return trained(storage, "name=second", "train.seed=1")


@pytest.fixture
def copy(storage, second, tmp_path):
    """A storage of the test's own, to be damaged; the registry of the copy names files of the copy."""
    shutil.copytree(storage, tmp_path / "copy")
    return tmp_path / "copy"


def find(called, storage, *overrides, **more):
    return models.find(called, [f"storage={storage}", *overrides], **more)


def problem(called, storage, *overrides, kind=RecipeError):
    with pytest.raises(kind) as raised:
        find(called, storage, *overrides)
    return str(raised.value)


def test_every_way_to_name_a_model_finds_its_weights(storage, first, second):
    for called, result in [
        ("models:/cnn@champion", first),
        ("models:/cnn@candidate", second),
        ("models:/cnn/1", first),
        ("models:/cnn", first),
        ("cnn", first),
        (second["run_id"], second),
        ("second", second),
        ("latest", second),
        (str(storage / "cnn" / "first"), first),
    ]:
        found = find(called, storage)
        assert checkpoint.weights_sha256(found.network()) == result["weights_sha256"], called
        assert (found.run_id, found.called) == (result["run_id"], called)
        assert found.version.uri == result["model"]["uri"]
        assert found.folder.path == storage / "cnn" / result["run_name"]
        assert found.encoding.classes == tuple("0123456789")
        assert found.tracking_uri == f"sqlite:///{storage}/mlflow.db"
        assert not found.network().training
        assert not found.warnings


def test_a_name_alone_is_the_alias_that_the_verb_wants(storage, first, second):
    assert find("cnn", storage, alias="candidate").run_id == second["run_id"]


def test_settings_are_those_of_the_run_with_the_overrides_over_them(storage, second):
    found = find("second", storage, "data.source=breast_cancer", "scale.workers=2")
    assert (found.run.data.source, found.run.scale.workers.most) == ("breast_cancer", 2)
    assert (found.run.train.seed, found.run.recipe, found.run.model.filters) == (1, "cnn", 32)
    assert found.run.root == storage


def test_a_wrong_override_says_what_would_be_right(storage, first):
    assert "data.sorce: no such setting; did you mean data.source?" in problem("first", storage, "data.sorce=x")
    assert "model.filters: a trained model keeps the settings of its network" in problem("first", storage, "model.filters=3")


def test_unknown_models_are_told_with_those_there_are(storage, first, second):
    assert "there is no registered model 'cn'; there are: cnn" in problem("models:/cn@champion", storage)
    told = problem("models:/cnn@best", storage)
    assert "models:/cnn has no alias @best; it has: @candidate (2); @champion (1); versions 1, 2" in told
    assert "models:/cnn has no version 9" in problem("models:/cnn/9", storage)
    assert "'nine' is no version; write models:/cnn/3, or models:/cnn@nine for an alias" in problem("models:/cnn/nine", storage)
    told = problem("thrid", storage)
    assert "thrid: no such run, folder or registered model; registered models: models:/cnn; newest runs: second, first" in told
    assert "no such run" in problem("0" * 32, storage)


def test_a_storage_without_runs_and_a_server_that_is_down_are_told(tmp_path):
    assert "mlflow.db: no runs are kept there yet" in problem("latest", tmp_path, kind=StorageError)
    down = "track.uri=http://127.0.0.1:9"
    assert "track.uri=http://127.0.0.1:9: no MLflow server answers" in problem("latest", tmp_path, down, kind=StorageError)
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says")
    assert "cannot be used" in problem("latest", tmp_path, kind=StorageError)


def test_a_run_that_registered_nothing_is_loaded_from_its_folder(copy):
    result = trained(copy, "name=unregistered", "track.register=false", "train.steps=5")
    for called in ("unregistered", str(copy / "cnn" / "unregistered")):
        found = find(called, copy)
        assert found.version is None
        assert found.weights.is_relative_to(copy / "cnn" / "unregistered" / "checkpoints")
        assert checkpoint.weights_sha256(found.network()) == result["weights_sha256"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def registered_files(client, folder: Path) -> Path:
    """The files of version 1, which are those of the original storage, moved into `folder`: the registry is told so."""
    model_id = client.get_model_version("cnn", "1").source.removeprefix("models:/")
    [found] = folder.rglob(f"{model_id}/artifacts/data/model")
    return found


def relocated(copy: Path, storage: Path) -> None:
    """Let the copied database name the copied files."""
    import sqlite3

    with sqlite3.connect(copy / "mlflow.db") as database:
        for table, column in [("logged_models", "artifact_location"), ("runs", "artifact_uri"), ("experiments", "artifact_location")]:
            database.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(storage), str(copy)))
        database.execute("update tags set value = replace(value, ?, ?) where key = 'raylway.folder'", (str(storage), str(copy)))


def test_weights_that_were_changed_after_registering_are_refused(copy, storage):
    relocated(copy, storage)
    folder = registered_files(connect(f"sqlite:///{copy}/mlflow.db"), copy)
    flipped(folder / "weights.safetensors")
    assert "weights.safetensors: its content is not what was registered (sha256 differs)" in problem(
        "models:/cnn/1", copy, kind=StorageError
    )


def test_weights_that_were_changed_together_with_their_hash_are_refused(copy, storage):
    """model.json lies beside them, so who can change the one can change the other; what the registry remembers is elsewhere."""
    from pipelines.sealed import sha256

    relocated(copy, storage)
    folder = registered_files(connect(f"sqlite:///{copy}/mlflow.db"), copy)
    flipped(folder / "weights.safetensors")
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"weights_sha256": sha256(folder / "weights.safetensors")}))
    with pytest.raises(StorageError, match="not what was registered"):
        find("models:/cnn/1", copy).network()


def test_a_class_that_is_none_of_ours_is_not_imported(copy, storage):
    relocated(copy, storage)
    folder = registered_files(connect(f"sqlite:///{copy}/mlflow.db"), copy)
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"class": "os:system"}))
    assert "there is no workloads/os.py" in problem("models:/cnn/1", copy)


def test_code_that_travels_with_a_model_is_never_run(copy, storage):
    """Each file of the registered package is replaced by one that leaves a mark; a model of other code says so."""
    relocated(copy, storage)
    folder = registered_files(connect(f"sqlite:///{copy}/mlflow.db"), copy).parents[1]
    mark = copy / "was-run"
    for file in (folder / "code").rglob("*.py"):
        file.write_text(f"open({str(mark)!r}, 'w').close()\n")
    description = folder / "MLmodel"
    [package] = (folder / "code").iterdir()
    package.rename(package.with_name("raylway_workloads_0123456789ab"))
    description.write_text(description.read_text().replace(package.name, "raylway_workloads_0123456789ab"))
    found = find("models:/cnn/1", copy)
    found.network()
    assert not mark.exists()
    assert ["registered with other code of workloads/" in warning for warning in found.warnings] == [True]


def test_a_torn_checkpoint_is_refused_and_the_one_before_it_taken(copy, storage):
    relocated(copy, storage)
    trained(copy, "name=torn", "track.register=false", "train.steps=20", "train.checkpoint_every=10")
    flipped(copy / "cnn" / "torn" / "checkpoints" / "step-00000020" / "model.safetensors")
    found = find("torn", copy)
    assert found.weights.parent.name == "step-00000010"
    assert "refused checkpoint step-00000020/model.safetensors" in found.warnings[0]


def test_a_run_whose_data_are_gone_says_so(copy, storage):
    relocated(copy, storage)
    trained(copy, "name=dataless", "track.register=false", "train.steps=5")
    shutil.rmtree(copy / "datasets")
    assert "are not in" in problem("dataless", copy, kind=StorageError)
    assert find("models:/cnn/1", copy).encoding.classes == tuple("0123456789")
