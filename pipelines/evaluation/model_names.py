"""What a person wrote to name a model: where to look for it, and which of a registered model's versions is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import RecipeError
from pipelines.tracking.shipper import tracking_uri

URI = "models:/"
_WHERE = ("storage", "track.uri")
_DECIDED = ("model", "workload")


def parted(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Where to look, and what is laid over the run's settings."""
    where: dict[str, str] = {}
    others = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if key in _WHERE and equals:
            where[key] = text
        elif key.partition(".")[0] in _DECIDED:
            raise RecipeError(f"{key}: a trained model keeps the settings of its network; train another to change them")
        else:
            others.append(override)
    return where, others


def root_of(where: dict[str, str]) -> Path:
    try:
        return Path(where.get("storage", "./runs")).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(f"storage: can be no path: {error}") from None


def version_of(called: str, alias: str) -> tuple[str, str]:
    """(name, version or alias) of models:/…"""
    rest = called.removeprefix(URI)
    name, at, which = rest.partition("@") if "@" in rest else rest.partition("/")
    if not name or (at and not which) or "/" in which:
        raise RecipeError(f"{called}: a registered model is written models:/name@alias or models:/name/3")
    if at == "/" and not which.isdigit():
        raise RecipeError(f"{called}: {which!r} is no version; write models:/{name}/3, or models:/{name}@{which} for an alias")
    return name, which or alias


def folder_of(called: str) -> Path | None:
    """The run's folder that `called` is, if it is one."""
    if called.startswith(URI):
        return None
    try:
        path = Path(called).expanduser()
        return path.resolve() if (path / "config.yaml").is_file() else None
    except (RuntimeError, ValueError, OSError):  # what can be no path may be a name
        return None


def registered_name(called: str, overrides: Sequence[str] = ()) -> tuple[str, str]:
    """(name of a registered model, tracking URI) of models:/name, with a version or an alias or without, or of the bare name."""
    where, _ = parted(overrides)
    name = version_of(called, "")[0] if called.startswith(URI) else called
    return name, tracking_uri(root_of(where), where.get("track.uri"))
