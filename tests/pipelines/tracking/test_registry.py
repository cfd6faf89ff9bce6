"""Registered models: loadable without this repository, side by side with other versions of its code, and never a pickle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipelines.tracking.client import connect
from tests.cli import CPU_QUICK, ROOT, raylway
from tests.trained import trained

LOAD = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]  # as if the project were not installed
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[2:]]
from sklearn.datasets import load_digits
digits = load_digits()
told = [model.predict(digits.images[:100].astype(numpy.uint8)) for model in models]
print(json.dumps({
    "labels": [list(table["label"]) for table in told],
    "sums": [float(numpy.stack(table["probabilities"]).sum(1).max()) for table in told],
    "right": [float((table["label"].str.removeprefix("digit ") == digits.target[:100].astype(str)).mean()) for table in told],
    "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("workloads", "pipelines", "cluster")),
}))
"""


def load(storage, *uris):
    """What models say in a fresh process with an empty path, in a folder where there is nothing."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, f"sqlite:///{storage}/mlflow.db", *uris],
        cwd=storage / "artifacts",
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory, empty_database):
    """One storage with two versions of `cnn`: by this code, and by a copy of it that names classes otherwise; and the aliases then."""
    storage, copy = tmp_path_factory.mktemp("versions"), tmp_path_factory.mktemp("copy")
    shutil.copy(empty_database, storage / "mlflow.db")
    for room in ("workloads", "pipelines", "cluster"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    task = copy / "workloads" / "tasks" / "classes.py"
    task.write_text(task.read_text().replace("[classes[k] for k", '["digit " + classes[k] for k'))
    first = trained(storage, "name=first")
    train = ("train", "cnn", "train.steps=60", f"storage={storage}", *CPU_QUICK, "--json", "name=second")
    code, second, err = raylway(*train, cwd=copy, PYTHONPATH=str(copy))
    assert code == 0, err
    aliases = connect(f"sqlite:///{storage}/mlflow.db").get_registered_model("cnn").aliases
    return storage, first, second, {name: int(version) for name, version in aliases.items()}


@pytest.mark.long
def test_models_of_different_code_load_side_by_side_without_the_repository(two_versions):
    storage, first, second, _ = two_versions
    told = load(storage, "models:/cnn@champion", second["model"]["uri"])
    assert not told["ours"]
    assert all(label.isdigit() for label in told["labels"][0])
    assert all(label.startswith("digit ") for label in told["labels"][1])
    assert told["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert min(told["right"]) > 0.7
    assert first["weights_sha256"] == second["weights_sha256"]


def test_the_first_version_is_champion_and_the_newest_candidate(two_versions):
    _, first, second, aliases = two_versions
    assert aliases == {
        "champion": first["model"]["version"],
        "candidate": second["model"]["version"],
    }


def test_a_registered_model_is_no_pickle_and_states_its_requirements(two_versions):
    storage, *_ = two_versions
    files = [path for path in (storage / "artifacts").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".txt", ".md", ".py", ".png", ".diff", ".npz", ""}
    for kept in (path for path in files if path.suffix == ".npz"):
        with np.load(kept, allow_pickle=False) as arrays:
            assert {arrays[name].dtype.kind for name in arrays.files} <= {"f", "i"}
    assert {path.name for path in files if not path.suffix} <= {"MLmodel", "registered_model_meta"}
    [requirements, *_] = [path for path in files if path.name == "requirements.txt"]
    assert {line.partition("==")[0] for line in requirements.read_text().split()} >= {"torch", "numpy", "pydantic", "safetensors"}


def test_registering_a_run_again_gives_the_version_that_is_there(two_versions):
    storage, first, *_ = two_versions
    result = storage / "cnn" / "first" / "result.json"
    kept = result.read_text()
    result.unlink()  # as if killed after registering and before the end
    again = trained(storage, "name=first")
    assert again["model"] == json.loads(kept)["model"] == first["model"]


def test_weights_that_were_changed_after_registering_are_refused(two_versions, tmp_path):
    from workloads.served import _load_pyfunc

    storage, *_ = two_versions
    [model, *_] = (storage / "artifacts").rglob("data/model")
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not what was registered"):
        _load_pyfunc(str(copy))
