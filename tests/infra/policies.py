"""What no manifest of ours may do: each policy gives a sentence for every place that breaks it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

from tests.infra.manifests import ROOT, Object, clusters, containers, pods

_NOTICE_SECONDS = 120
_LINGERING_SECONDS = 600
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/@:]*:[^/@]+@")
Policy = Callable[[list[Object]], Iterator[str]]


def pinned(package: str) -> str:
    """The version of constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE | re.IGNORECASE)
    assert found, package
    return found[1]


def images_are_pinned(objects: list[Object]) -> Iterator[str]:
    for container in containers(objects):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag in ("", "latest") and "@sha256:" not in container["image"]:
            yield f"{container['name']}: image {container['image']} is not pinned"


def nothing_runs_as_root(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        context = pod.get("securityContext", {})
        inner = [each.get("securityContext", {}) for each in (*pod.get("initContainers", ()), *pod["containers"])]
        if any(each.get("runAsUser") == 0 or each.get("runAsNonRoot") is False for each in inner):
            yield f"pod of {pod['containers'][0]['name']}: a container runs as root"
        if not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"pod of {pod['containers'][0]['name']}: may run as root, or without a seccomp profile"


def nothing_gains_privileges(objects: list[Object]) -> Iterator[str]:
    for container in containers(objects):
        context = container.get("securityContext", {})
        if (
            context.get("privileged")
            or context.get("allowPrivilegeEscalation") is not False
            or context.get("capabilities") != {"drop": ["ALL"]}
        ):
            yield f"{container['name']}: may gain privileges"


def no_secret_is_written_down(objects: list[Object]) -> Iterator[str]:
    for container in containers(objects):
        yield from (f"{container['name']}: {each['name']} is written down" for each in container.get("env", ())
                    if _SECRET.search(each["name"]) and each.get("value"))  # fmt: skip

        yield from (f"{container['name']}: {each['name']} holds a password" for each in container.get("env", ())
                    if _LOGIN.search(each.get("value", "")))  # fmt: skip
    yield from (f"secret {each['metadata']['name']} is written down" for each in objects
                if each["kind"] == "Secret" and (each.get("data") or each.get("stringData")))  # fmt: skip


def resources_are_stated(objects: list[Object]) -> Iterator[str]:
    for container in containers(objects):
        resources = container.get("resources", {})
        if not resources.get("requests") or not resources.get("limits"):
            yield f"{container['name']}: no requests or no limits"
        gpus = [resources.get(kind, {}).get("nvidia.com/gpu") for kind in ("requests", "limits")]
        if gpus[0] != gpus[1]:
            yield f"{container['name']}: GPUs requested and GPUs allowed differ"


def nothing_is_public(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        if each["kind"] == "Ingress":
            yield f"ingress {each['metadata']['name']} lets the world in"
        if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"service {each['metadata']['name']} can be reached from outside"
    for pod in pods(objects):
        if pod.get("hostNetwork") or any("hostPath" in volume for volume in pod.get("volumes", ())):
            yield f"pod of {pod['containers'][0]['name']}: uses the node's network or files"
    for container in containers(objects):
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{container['name']}: takes a port of its node"


def clusters_ask_for_a_token(objects: list[Object]) -> Iterator[str]:
    yield from ("authOptions.mode is not token" for cluster in clusters(objects) if cluster.get("authOptions") != {"mode": "token"})


def ray_is_the_one_that_is_pinned(objects: list[Object]) -> Iterator[str]:
    versions = {cluster.get("rayVersion") for cluster in clusters(objects)} - {pinned("ray")}
    yield from (f"rayVersion {version}, but constraints.txt has {pinned('ray')}" for version in versions)


def heads_do_no_work(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        head = cluster["headGroupSpec"]
        gpus = any("nvidia.com/gpu" in each["resources"]["limits"] for each in head["template"]["spec"]["containers"])
        if head["rayStartParams"].get("num-cpus") != "0" or gpus:
            yield "the head offers CPUs or GPUs to training"


def workers_have_time_to_leave(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            told = [each.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command") for each in pod["containers"]]
            if ["drain-node", str(_NOTICE_SECONDS)] not in told or pod.get("terminationGracePeriodSeconds", 30) <= _NOTICE_SECONDS:
                yield f"group {group['groupName']}: no notice of {_NOTICE_SECONDS} s before it is taken away"


def groups_have_sizes_that_go_together(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        for group in cluster["workerGroupSpecs"]:
            if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield f"group {group['groupName']}: not minReplicas <= replicas <= maxReplicas"


def runs_end_and_are_tried_again(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        if each["kind"] == "RayJob":
            spec = each["spec"]
            if not spec.get("backoffLimit") or not spec.get("activeDeadlineSeconds") or not spec.get("shutdownAfterJobFinishes"):
                yield f"{each['metadata']['name']}: not tried again, or without an end"
            if spec.get("ttlSecondsAfterFinished", 0) > _LINGERING_SECONDS:
                yield f"{each['metadata']['name']}: holds its GPUs for long after its end"


def what_comes_again_is_not_tried_again(objects: list[Object]) -> Iterator[str]:
    """KubeRay repeats whatever fails; `attempt` (infra/docker/attempt.py) stops a job whose failure another cluster would not cure."""
    for each in objects:
        if each["kind"] == "RayJob" and shlex.split(each["spec"]["entrypoint"])[0] != "attempt":
            yield f"{each['metadata']['name']}: a wrong recipe would be begun again, cluster by cluster"


def entry_points_are_argument_lists(objects: list[Object]) -> Iterator[str]:
    """Ray gives them to a shell, so what a shell would read in its own way must be quoted."""
    for each in objects:
        if each["kind"] == "RayJob" and shlex.join(shlex.split(each["spec"]["entrypoint"])) != each["spec"]["entrypoint"]:
            yield f"{each['metadata']['name']}: a shell would read its entry point in its own way"


def storage_outlives_the_nodes(objects: list[Object]) -> Iterator[str]:
    for cluster in clusters(objects):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
            if "persistentVolumeClaim" not in volumes.get("storage", {}):
                yield "runs are kept on a node"


def names_are_short_labels(objects: list[Object]) -> Iterator[str]:
    for each in objects:
        limit = {"RayJob": 47, "RayCluster": 53}.get(each["kind"], 63)
        name = each["metadata"]["name"]
        if len(name) > limit or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{each['kind']} {name}: not a label of at most {limit} letters"


ALL: tuple[Policy, ...] = (
    *(
        images_are_pinned,
        nothing_runs_as_root,
        nothing_gains_privileges,
        no_secret_is_written_down,
        resources_are_stated,
        nothing_is_public,
    ),
    *(clusters_ask_for_a_token, ray_is_the_one_that_is_pinned, heads_do_no_work, workers_have_time_to_leave),
    *(groups_have_sizes_that_go_together, runs_end_and_are_tried_again, what_comes_again_is_not_tried_again),
    *(entry_points_are_argument_lists, storage_outlives_the_nodes),
    names_are_short_labels,
)


def broken(objects: list[Object]) -> set[str]:
    """The names of the policies that are broken."""
    return {policy.__name__ for policy in ALL if list(policy(objects))}
