"""The Python API (pipelines/api.py) and its errors: `from pipelines import train`. Nothing is imported before it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster import ClusterError
    from pipelines.api import compare, evaluate, plan, predict, prepare, promote, reproduce, sweep, train, verify
    from pipelines.errors import DataError, Diverged, RecipeError, StorageError, TrackingError, WorkerFailed

__all__ = [
    "ClusterError",
    "DataError",
    "Diverged",
    "RecipeError",
    "StorageError",
    "TrackingError",
    "WorkerFailed",
    "compare",
    "evaluate",
    "plan",
    "predict",
    "prepare",
    "promote",
    "reproduce",
    "sweep",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "cluster" if name == "ClusterError" else f"{__name__}.{'api' if name.islower() else 'errors'}"
    return getattr(import_module(home), name)
