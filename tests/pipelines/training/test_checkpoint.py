"""A checkpoint gives back the whole state, or is refused by name; a crash at any instant leaves one to go on from."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.settings import Optim
from pipelines.training import checkpoint
from pipelines.training.optim import make_optimizer
from tests import damage

IDENTITY = "this run"
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]


class Network(nn.Module):
    """Parameters of one and two dimensions, float and integer buffers, and one that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(40, 40), nn.BatchNorm1d(40), nn.Linear(40, 40)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


State = tuple[nn.Module, torch.optim.Optimizer]


def advance(state: State, step: int) -> None:
    model, optimizer = state
    optimizer.zero_grad()
    model(torch.randn(16, 40, generator=torch.Generator().manual_seed(step))).square().mean().backward()
    optimizer.step()


def state_after(steps: int, name: str = "adamw") -> State:
    torch.manual_seed(0)
    model = Network()
    state = model, make_optimizer(model, Optim(name=name, lr=0.01))
    for step in range(steps):
        advance(state, step)
    return state


def save(folder: Path, step: int, *, state: State | None = None, keep: int = 2, identity: str = IDENTITY) -> Path:
    return checkpoint.save(folder, *(state or state_after(step)), step=step, identity=identity, world_size=1, keep=keep)


def newest(folder: Path) -> tuple[str | None, list[str]]:
    path, refused = checkpoint.newest(folder, IDENTITY)
    return path and path.name, refused


def whole(state: State) -> dict[str, bytes | float]:
    """Every tensor of the state as bytes, found by torch's own means."""
    model, optimizer = state
    tensors = {f"model {name}": tensor for name, tensor in model.state_dict().items()}
    for place, part in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {place} {name}": value for name, value in part.items() if isinstance(value, torch.Tensor)}
    return {name: str((tensor.dtype, tensor.shape)).encode() + tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_whole_state_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    saved = state_after(3, name)
    path = save(tmp_path, 3, state=saved)
    restored = state_after(1, name)
    assert whole(restored) != whole(saved)
    assert checkpoint.restore(path, *restored) == 3
    assert whole(restored) == whole(saved)
    advance(saved, 3)
    advance(restored, 3)
    assert whole(restored) == whole(saved)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fresh_network_and_optimizer_take_the_state(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 2, state=(saved := state_after(2, name)))
    fresh = state_after(0, name)
    checkpoint.restore(path, *fresh)
    advance(saved, 2)
    advance(fresh, 2)
    assert whole(fresh) == whole(saved)


@pytest.mark.parametrize("harm", [damage.truncate, damage.flip_bit, damage.zero_page, damage.empty, damage.delete])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_checkpoint_is_refused_by_name_and_the_one_before_is_used(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    save(tmp_path, 1)
    harm(save(tmp_path, 2) / name)
    found, refused = newest(tmp_path)
    assert found == "step-00000001"
    assert len(refused) == 1
    named = (
        "" if (name, harm) == ("MANIFEST.json", damage.flip_bit) else f"{name}: "
    )  # a hash in it no longer fits a file: either may be told
    assert refused[0].startswith(f"step-00000002/{named}")


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(step=1),
        lambda manifest: manifest.update(format=99),
        lambda manifest: manifest.update(unknown=1),
        lambda manifest: manifest["files"].pop("state.json"),
        lambda manifest: manifest["files"].update({"weights.pt": manifest["files"]["state.json"]}),
        lambda manifest: manifest["files"].update({"../state.json": manifest["files"].pop("state.json")}),
    ],
    ids=["another step", "another format", "an unknown field", "a file less", "a file more", "a path"],
)
def test_a_manifest_of_something_else_is_refused_by_name(tmp_path: Path, change: Callable[[dict], object]) -> None:
    save(tmp_path, 1)
    rewrite(save(tmp_path, 2), change)
    found, refused = newest(tmp_path)
    assert found == "step-00000001"
    assert refused[0].startswith("step-00000002/MANIFEST.json: ")


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-00000007")
    found, refused = newest(tmp_path)
    assert found == "step-00000001"
    assert len(refused) == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, identity="another run")
    found, refused = newest(tmp_path)
    assert found is None
    assert refused == ["step-00000001: belongs to a run with other settings or data"]


def test_where_there_is_no_checkpoint_none_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") == (None, [])


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl", "__init__.py"])
def test_a_file_planted_beside_the_others_is_never_read(tmp_path: Path, name: str) -> None:
    canary, saved = tmp_path / "canary", state_after(2)
    path = save(tmp_path / "checkpoints", 2, state=saved)
    (path / name).write_bytes(pickle.dumps(Canary(canary)))
    checkpoint.newest(tmp_path / "checkpoints", IDENTITY)
    checkpoint.restore(path, *(restored := state_after(0)))
    assert whole(restored) == whole(saved)
    assert not canary.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_never_executed(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "checkpoints", 2)
    (path / name).write_bytes(pickle.dumps(Canary(canary)))
    assert newest(tmp_path / "checkpoints")[0] is None
    assert not canary.exists()


def test_a_sealed_pickle_is_not_executed_either(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "checkpoints", 2)
    content = pickle.dumps(Canary(canary))
    (path / "model.safetensors").write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(path, lambda manifest: manifest["files"].update({"model.safetensors": seal}))
    assert newest(tmp_path / "checkpoints")[0] == path.name  # whoever can write the seal is believed …
    with pytest.raises(Exception, match=r"(?i)header"):  # … but what he wrote is not run
        checkpoint.restore(path, *state_after(0))
    assert not canary.exists()


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_are_kept_and_no_more(tmp_path: Path, keep: int) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=keep)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08}" for n in range(max(1, step - keep + 1), step + 1)]


def test_a_torn_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    save(tmp_path, 2)
    damage.flip_bit(save(tmp_path, 4) / "model.safetensors")
    save(tmp_path, 3)  # resumed from 2, checkpoints now more often
    shutil.rmtree(tmp_path / "step-00000003")
    assert newest(tmp_path)[0] == "step-00000002"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    state = state_after(1)
    for step in (99_999_998, 99_999_999, 100_000_000):
        save(tmp_path, step, state=state)
    assert newest(tmp_path)[0] == "step-100000000"


def independent_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name in sorted(model.state_dict()):
        array = model.state_dict()[name].numpy()
        digest.update(f"{name}|torch.{array.dtype}|{array.shape}|".encode() + array.tobytes())
    return digest.hexdigest()


def test_the_hash_of_the_weights_is_that_of_name_type_shape_and_bytes() -> None:
    model, _ = state_after(2)
    assert checkpoint.weights_sha256(model) == independent_sha256(model)


@pytest.mark.parametrize("name", ["first.weight", "norm.running_var", "norm.num_batches_tracked"])
def test_one_bit_changes_the_hash_of_the_weights(name: str) -> None:
    model, _ = state_after(2)
    other = copy.deepcopy(model)
    other.state_dict()[name].view(-1).view(torch.uint8)[0] ^= 1
    assert checkpoint.weights_sha256(other) != checkpoint.weights_sha256(model)


class Killed(BaseException):
    """The process ends here."""


OPERATIONS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


@contextmanager
def killed_at(call: int) -> Iterator[list[str]]:
    """The process dies before the `call`-th change of the file system; the list says which were made."""
    made: list[str] = []
    here = threading.current_thread()

    def dying(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            if threading.current_thread() is here:
                if len(made) == call:
                    raise Killed
                made.append(name)
            return real(*arguments, **options)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, dying(name, getattr(os, name)))
        yield made


@pytest.mark.parametrize("torn_before", [False, True], ids=["a new name", "the name of a torn one"])
def test_a_kill_at_any_write_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, torn_before: bool) -> None:
    outcomes, third, before = [], state_after(3), tmp_path / "before"
    save(before, 1)
    save(before, 2)
    if torn_before:
        damage.flip_bit(save(before, 3, keep=3) / "model.safetensors")
    for call in range(100):
        folder = shutil.copytree(before, tmp_path / str(call))
        with killed_at(call) as made:
            try:
                save(folder, 3, state=third)
                finished = True
            except Killed:
                finished = False
        found, _ = newest(folder)
        assert found in {"step-00000002", "step-00000003"}, f"killed after {made}"
        if found == "step-00000003":
            checkpoint.restore(folder / found, *(restored := state_after(0)))
            assert whole(restored) == whole(third)
        outcomes.append(found)
        if finished:
            break
    assert finished
    assert call >= 8  # each file and folder synced, two renames, one deletion: or the test has missed the writes
    assert outcomes == sorted(outcomes)  # once the new one stands, it stays
    assert (outcomes[0], outcomes[-1]) == ("step-00000002", "step-00000003")


def test_what_a_killed_write_left_is_swept_by_the_next(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with killed_at(3), pytest.raises(Killed):
        save(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
