"""The only file that uses Ray's private API (of Ray 2.60): what another version of Ray may break stands here.

Each function returns plain values and decides nothing. Ray is imported where it is used.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SESSION_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "180",  # Ray then ends the process without a word; connection.Watch is to come first
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else a worker's print appears twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process fewer in a cluster that lives as long as one command
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon the end of training is seen; 2 s by default
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_prestart_worker_first_driver": "0",  # else as many processes as CPUs are started at once, and few of them are ever used
    "RAY_worker_niceness": "0",  # else training yields to everything else on the machine
}
"""Environment of a session, read when Ray's processes start."""
TUNE_SWITCHES = {
    "RAY_AIR_NEW_OUTPUT": "0",  # else tables are printed at any verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report has no metric of its own
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # its state is pickled, and is not what we go on from
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Environment of Ray Tune."""
KINDS = ("CPU", "GPU")
Amounts = Mapping[str, float]
"""CPU and GPU -> how much of it."""


def keep_credentials_out_of_tune() -> None:
    """Tune would hand AWS's on in a runtime environment, which Ray writes into its logs; nodes have credentials of their own."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


# ---- token authentication and the control plane (GCS)


def sends_token() -> bool:
    """True if this process sends a token."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return is_token_auth_enabled()


def enable_token() -> tuple[bool, bool]:
    """Send a token from now on if one is there and RAY_AUTH_MODE does not forbid it, as ray.init does: (tokens are on, there is one)."""
    from ray._private.authentication import authentication_token_setup as setup
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    logging.getLogger(setup.__name__).setLevel(logging.ERROR)
    on = setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return on, on and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def control_plane_version(address: str, *, with_token: bool, seconds: float) -> str:
    """Ray's version of the control plane at `address` (host:port), '' if it does not say. Raises grpc.RpcError."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    options = [("grpc.enable_http_proxy", 0)]
    channel: Any = init_grpc_channel(address, options=options) if with_token else grpc.insecure_channel(address, options=options)
    try:
        reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
        return str(getattr(reply, "ray_version", "") or "")
    finally:
        channel.close()


def raylets_here() -> bool:
    """True if a raylet runs on this machine."""
    from ray._private.services import find_node_ids

    return bool(find_node_ids())


# ---- state of the cluster, from the control plane (GCS) itself: ray.util.state needs the dashboard, which a cluster may lack


def free_by_node() -> tuple[Mapping[str, Amounts], set[str]]:
    """Node's id -> what is free on it; and the ids of nodes that are being drained, as Ray Train's own PreemptionWatcher asks for them."""
    from ray._private.state import available_resources_per_node, state

    return available_resources_per_node(), set(state.get_draining_nodes())


def growth_limit() -> Amounts:
    """Each resource's amount to which the cluster can grow, if it grows by itself; else nothing."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}


def living_actors_of_driver() -> dict[str, tuple[str, str]]:
    """Actor's id -> (its class, its node's id)."""
    import ray
    from ray._private.state import actors

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found = actors(job_id=job, actor_state_name="ALIVE")
    return {name: (actor["ActorClassName"], actor["Address"]["NodeID"]) for name, actor in found.items()}


def training_actors() -> list[str]:
    """Classes of the living actors of trainings that this process started: Ray Train's controllers, and what those started in turn.

    Not those that are detached: Ray Data's statistics and autoscaling outlive whoever was the first to need them.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    here = bytes.fromhex(ray.get_runtime_context().get_worker_id())
    actors = [gcs_pb2.ActorTableData.FromString(row) for row in state._connect_and_get_accessor().get_actor_table(None, None)]
    by_process = {actor.address.worker_id: actor for actor in actors if actor.address.worker_id}

    def of_training(actor: Any) -> bool:
        owner = actor.owner_address.worker_id
        if actor.is_detached:
            return False
        return actor.class_name == "TrainController" if owner == here else owner in by_process and of_training(by_process[owner])

    return [actor.class_name for actor in actors if actor.state != gcs_pb2.ActorTableData.DEAD and of_training(actor)]


def reservations() -> dict[str, Amounts]:
    """Job's id -> CPUs and GPUs of its placement groups that have their place, and of its living actors outside of one."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor = state._connect_and_get_accessor()
    held: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(row)
        if group.state == gcs_pb2.PlacementGroupTableData.CREATED:
            for bundle in group.bundles:
                held[group.creator_job_id.hex()].update({kind: bundle.unit_resources.get(kind, 0) for kind in KINDS})
    for row in accessor.get_actor_table(None, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(row)
        if not any("_group_" in kind for kind in actor.required_resources):
            held[actor.job_id.hex()].update({kind: actor.required_resources.get(kind, 0) for kind in KINDS})
    return {job: amounts for job, amounts in held.items() if any(amounts.values())}


def entrypoint(job: str) -> str:
    """The command of a job, '' if there is none."""
    from ray._private.state import jobs

    return next((each["Entrypoint"] for each in jobs() if each["JobID"] == job), "")


# ---- this process's own Ray


def kill_autoscaler() -> None:
    """End the autoscaler of a cluster that this process started: it does not heed SIGTERM, and Ray would wait a second for it."""
    import ray

    if node := ray._private.worker._global_node:
        node.kill_monitor(check_alive=False)


def session_folder() -> str:
    """Ray's temporary folder on this node."""
    import ray

    return str(ray._private.worker.global_worker.node.get_session_dir_path())


# ---- Ray Train's errors


def start_timed_out(failure: BaseException) -> bool:
    """True if workers found no place in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(failure, WorkerGroupStartupTimeoutError)


def raised_by_worker(failure: BaseException) -> BaseException | None:
    """The exception that a worker's function raised; None if its process or its node is gone, or never came up."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback

    if isinstance(failure, UserExceptionWithTraceback):
        failure = failure._base_exc
    return None if isinstance(failure, (RayError, RayTrainError)) else failure


# ---- Ray Jobs

# two of these loggers set a level of their own, which the level of their package does not reach
_CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.working_dir", "_private.authentication")


def job_client(address: str, *, connect_seconds: float, answer_seconds: float, send_seconds: float) -> Any:
    """Ray's JobSubmissionClient, which by itself waits for an answer without end, with bounds; and Ray's version of the cluster."""
    from ray.job_submission import JobSubmissionClient

    class Bounded(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            seconds = answer_seconds if method == "GET" else send_seconds
            return super()._do_request(method, endpoint, **({"timeout": (connect_seconds, seconds)} | options))

    for name in _CHATTY:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # an address that is given is overridden by this, and by RAY_ADDRESS
    client = Bounded(address)
    return client, client._server_ray_version


def upload_files(folder: Path, excludes: Sequence[str]) -> tuple[dict[str, int], str, int]:
    """The package that Ray would make of `folder`: relative path -> bytes, the URI of this content, and the most bytes of a package."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    logging.getLogger(packaging.__name__).setLevel(logging.ERROR)
    every = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    honoured = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    files: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(folder))] = path.stat().st_size

    packaging._dir_travel(folder, [packaging._get_excludes(folder, every)], count, include_gitignore=honoured)
    uri = packaging.get_uri_for_directory(str(folder), honoured, excludes=every)
    return files, uri, packaging.GCS_STORAGE_MAX_SIZE
