"""Tell MLflow's troubles from our own: a server, a network and a database driver each throw what they like."""

from __future__ import annotations

from pipelines.errors import TrackingError
from pipelines.tracking import provenance

_THEIRS = {"mlflow", "sqlalchemy", "requests", "urllib3"}


def is_mlflows(error: BaseException) -> bool:
    """Whether the same may work later, or with another server."""
    return isinstance(error, (OSError, TrackingError)) or type(error).__module__.split(".")[0] in _THEIRS


def sentence(error: BaseException) -> str:
    """The first line of what went wrong, with no secret in it."""
    return provenance.redact(str(error)).strip().partition("\n")[0]
