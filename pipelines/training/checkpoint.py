"""Checkpoints that can be trusted: a folder counts only when its MANIFEST.json stands and every file's hash agrees.

Everything is written into a folder of another name, synced, sealed by the manifest (sizes and sha256 of every file, step, identity of
the run), and then renamed into place. A crash at any instant leaves the checkpoint before, or the new one. Reading takes the newest
that verifies. safetensors and JSON only: nothing here can run code when it is read.

What is stored is whole, however it is shared out among workers: it is gathered and cut one tensor at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from pipelines import sealed

if TYPE_CHECKING:  # else imported where tensors are touched: who only asks which checkpoint is the newest must not wait for torch
    import torch
    from torch import Tensor, nn

_MODEL, _OPTIMIZER, _STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    step: int
    identity: str
    """Hash of the settings and data that decide the weights."""
    files: dict[str, sealed.File]
    versions: dict[str, str]
    threads: int
    """Threads torch computed with: another number gives other bits."""
    world_size: int


class CheckpointError(Exception):
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, identity: str, world_size: int, keep: int) -> Path:
    """Write the checkpoint of `step` into `folder` and delete all but the newest `keep` that are complete.

    Only the first worker does; where each holds a part (Group.sharded), the others call `give` at the same time.
    """
    import torch
    from safetensors.torch import save_file

    final = path_of(folder, step)
    partial = sealed.partial(final)
    partial.mkdir(parents=True)
    weights = dict(_weights(model))
    save_file(weights, partial / _MODEL)
    save_file(dict(_moments(model, optimizer)), partial / _OPTIMIZER)
    (partial / _STATE).write_text(json.dumps({"step": step, "weights_sha256": _sha256(weights.items())}))
    files = {name: sealed.describe(partial / name) for name in (_MODEL, _OPTIMIZER, _STATE)}
    manifest = Manifest(
        step=step,
        identity=identity,
        files=files,
        versions={"python": platform.python_version(), "torch": torch.__version__},
        threads=torch.get_num_threads(),
        world_size=world_size,
    )
    sealed.seal(partial, MANIFEST, manifest, files)
    if final.exists():  # one that did not verify, or we would have started from it
        shutil.rmtree(final)
    os.rename(partial, final)
    sealed.sync(folder)
    _sweep(folder, keep)
    return final


def give(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give this worker's part of each tensor to the first one, which saves them."""
    for _ in itertools.chain(_weights(model), _moments(model, optimizer)):
        pass


def adopt(source: Path, folder: Path, identity: str) -> Path:
    """Put a verified checkpoint of another run into `folder` as this run's own, in the place of those there. Raises CheckpointError."""
    manifest = verify(source)
    partial = sealed.partial(folder / source.name)
    shutil.copytree(source, partial)
    sealed.seal(partial, MANIFEST, manifest.model_copy(update={"identity": identity}))
    for own in _newest_first(folder):
        shutil.rmtree(own)
    os.rename(partial, final := path_of(folder, manifest.step))
    sealed.sync(folder)
    return final


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that has a manifest. Nothing of it is read, so it may be one that does not verify."""
    return next((path for path in _newest_first(folder) if (path / MANIFEST).is_file()), None)


def latest_name(folder: Path) -> str:
    """The name of `latest`, for sentences and comparisons; empty where there is no checkpoint."""
    path = latest(folder)
    return path.name if path else ""


def newest(folder: Path, identity: str) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in `folder` that verifies, or None, and why newer ones were refused."""
    refused: list[str] = []
    for path in _newest_first(folder):
        try:
            manifest = verify(path)
            if manifest.identity != identity:
                raise CheckpointError(f"{path.name}: belongs to a run with other settings or data")
            return path, refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused


def verify(path: Path) -> Manifest:
    """The manifest of the checkpoint in `path`, every file's size and hash compared. Raises CheckpointError naming the file."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.name}/{MANIFEST}: missing, so the checkpoint was never completed") from None
    except (ValidationError, OSError) as error:
        raise CheckpointError(f"{path.name}/{MANIFEST}: damaged ({type(error).__name__})") from None
    if path != path_of(path.parent, manifest.step) or set(manifest.files) != {_MODEL, _OPTIMIZER, _STATE}:
        raise CheckpointError(f"{path.name}/{MANIFEST}: is the manifest of another checkpoint")
    if wrong := sealed.mismatch(path, manifest.files):
        raise CheckpointError(f"{path.name}/{wrong}")
    return manifest


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimizer state from a verified checkpoint; the number of finished steps.

    Of what is shared out, each worker reads its own part.
    """
    weights = model.state_dict()
    model.load_state_dict(_read(path / _MODEL, weights, str))
    _load_optimizer(model, optimizer, _read(path / _OPTIMIZER, weights, lambda name: name.rpartition("/")[0]))
    return int(json.loads((path / _STATE).read_text())["step"])


def load_weights(file: Path, model: nn.Module) -> None:
    """Load a safetensors file of all weights and buffers by name. Raises CheckpointError if they are not those of the network."""
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not the weights of this network: {str(error).strip().splitlines()[-1].strip()}") from None


def weights_file(path: Path) -> Path:
    return path / _MODEL


def promised_sha256(path: Path) -> str:
    """`weights_sha256` as it was when a verified checkpoint was written."""
    return str(json.loads((path / _STATE).read_text())["weights_sha256"])


def weights_sha256(model: nn.Module) -> str:
    """sha256 over every parameter and buffer in name order: name, dtype, shape, bytes. All workers take part (Group.sharded)."""
    return _sha256(_weights(model))


def _sha256(weights: Iterable[tuple[str, Tensor]]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def path_of(folder: Path, step: int) -> Path:
    """Path of the checkpoint of `step` in `folder`."""
    return folder / f"step-{step:08}"


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, whole and on the CPU, in name order."""
    from pipelines.training.sharding import full_tensor

    for name, tensor in sorted(model.state_dict().items()):
        # tied weights share memory, which safetensors refuses; a clone of each is written
        yield name, full_tensor(tensor.detach()).cpu().contiguous().clone()


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimizer's state, whole and on the CPU."""
    from torch import Tensor

    from pipelines.training.sharding import full_tensor

    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield f"{names[parameter]}/{key}", full_tensor(value.detach()).cpu().contiguous()


def _read(file: Path, weights: Mapping[str, Tensor], weight_of: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a file, each held as the weight is that it is of."""
    from pipelines.training.sharding import like

    def rows(name: str) -> Callable[[slice | None], Tensor]:
        return lambda part: stored.get_tensor(name) if part is None else stored.get_slice(name)[part]

    with safe_open(file, "pt") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        return {name: like(weights.get(weight_of(name)), shape, rows(name)) for name, shape in shapes.items()}


# A state comes back contiguous whatever the parameter's memory format is. Before a network is laid out otherwise (channels_last), this
# must follow it: fused AdamW pairs elements by their place in memory (torch 2.13), and a resumed run would go wrong without a word.
def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed: dict[str, Any] = optimizer.state_dict()
    packed["state"] = {place: states[names[parameter]] for place, parameter in enumerate(ordered) if names[parameter] in states}
    optimizer.load_state_dict(packed)


def _sweep(folder: Path, keep: int) -> None:
    """Delete unfinished writes of processes that are gone, and complete checkpoints beyond the newest `keep`."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    kept = 0
    for path in _newest_first(folder):
        if kept == keep:
            shutil.rmtree(path, ignore_errors=True)
        kept += kept < keep and _trusted(path)


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _trusted(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
