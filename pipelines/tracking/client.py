"""The tracking server: its address, a check that it answers and accepts our login, and a client of it.

The login is tried before anything is launched. MLflow is imported only where that fails, because it knows more ways to log in.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from pipelines.errors import StorageError, TrackingError
from pipelines.tracking import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its own handlers would print to the screen; warnings go the usual way
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow would send even a "create" again whose answer was lost, and make two (3.17); and one call to a server that is down would
    # take 4 minutes. What may be sent again is for us to know.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # a proxy of artifacts answers when it has stored them
}
_USER, _PASSWORD, _TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
_QUESTION = "api/2.0/mlflow/experiments/search?max_results=1"  # /health answers without a login
_SECONDS = 10
_THEIRS = {"mlflow", "sqlalchemy", "requests", "urllib3"}
NOTE, HEADLINE = "mlflow.note.content", "raylway.headline"
"""Tags: a page's description, and the metric by which a run is ranked ("max accuracy")."""


def tracking_uri(root: Path, setting: str | None) -> str:
    """`track.uri`, else MLFLOW_TRACKING_URI, else a database in the storage folder."""
    return setting or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def check(uri: str) -> None:
    """Raises StorageError, before anything is launched, if nothing can be tracked at `uri`. Imports no mlflow where all is well."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _check_login(uri)
    elif scheme.partition("+")[0] not in _DATABASES:
        raise StorageError(
            f"track.uri={provenance.redact(uri)}: not an MLflow address; write http://host:port or sqlite:///path/to/mlflow.db"
        )


def connect(uri: str) -> MlflowClient:
    """A client of `uri`, which also becomes the process's own, because the registry's calls look there (MLflow 3.17)."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    import mlflow

    if uri.startswith("sqlite:////") and "?" not in uri and not (database := Path(uri.removeprefix("sqlite:///"))).exists():
        _make(database)
    theirs = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # writes the environment too, where the next run of this process would take it for the user's wish
    if theirs is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = theirs
    return mlflow.MlflowClient(uri)


def server(uri: str) -> str:
    """Address of MLflow's pages; for a database, the one at which `raylway ui` shows them."""
    return provenance.redact(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page."""
    return f"{server(uri)}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def compare_page(uri: str, run_ids: Sequence[str], experiment_ids: Iterable[str]) -> str:
    """Address of the page that lays runs side by side."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps(sorted(set(experiment_ids))))
    return f"{server(uri)}/#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


def is_mlflows(error: BaseException) -> bool:
    """True for an error of MLflow, its server, the network or a database, rather than of ours: later or elsewhere the same may work."""
    return isinstance(error, (OSError, TrackingError)) or type(error).__module__.split(".")[0] in _THEIRS


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without secrets."""
    return provenance.redact(str(error)).strip().partition("\n")[0]


def _make(database: Path) -> None:
    """Make an empty database, which is there whole or not at all: MLflow takes seconds to make one, and one that it was killed over
    can never be opened again (3.17)."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    database.parent.mkdir(parents=True, exist_ok=True)
    partial = database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}")
    try:
        engine = create_sqlalchemy_engine(f"sqlite:///{partial}")
        _initialize_tables(engine)
        engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, database)
    finally:
        partial.unlink(missing_ok=True)


def _check_login(uri: str) -> None:
    """Raises TrackingError, which says what to start or to set, unless the server at `uri` answers and lets us in."""
    parts = urlsplit(uri)
    address = uri.replace(f"{parts.username}:{parts.password}@", "").replace(f"{parts.username}@", "") if parts.username else uri
    request = urllib.request.Request(f"{address.rstrip('/')}/{_QUESTION}", headers=_headers(parts.username, parts.password))
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            _refused(uri, error.read(300).decode(errors="replace"))
        if error.code >= 500:
            raise TrackingError(f"track.uri={provenance.redact(uri)}: the MLflow server answers with error {error.code}") from None
    except (OSError, ValueError) as error:
        raise TrackingError(f"track.uri={provenance.redact(uri)}: no MLflow server answers ({getattr(error, 'reason', error)})") from error


def _headers(user: str | None, password: str | None) -> dict[str, str]:
    """The login that MLflow's own client would use (3.17): name and password if there are both, else the token."""
    user = unquote(user) if user else os.environ.get(_USER)
    password = unquote(password) if password else os.environ.get(_PASSWORD)
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get(_TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _refused(uri: str, answer: str) -> None:
    shown = provenance.redact(uri)
    if "Host header" in answer:
        raise TrackingError(f"track.uri={shown}: the MLflow server does not know itself by that name; start it with --allowed-hosts")
    from mlflow.exceptions import MlflowException

    try:  # it knows more ways to log in than are tried here: a file of credentials, plugins
        connect(uri).search_experiments(max_results=1)
    except MlflowException as error:
        given = [name for name in (_USER, _PASSWORD, _TOKEN) if os.environ.get(name)]
        found = f"it does not accept what {' and '.join(given)} say" if given else f"neither {_USER} and {_PASSWORD} nor {_TOKEN} are set"
        raise TrackingError(f"track.uri={shown}: the MLflow server asks for a login, and {found}; set them in the environment") from error
