"""What is shipped for Kubernetes is valid, keeps every policy, and starts commands that exist; and every policy can fire."""

from __future__ import annotations

import base64
import copy
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import config
from tests.infra import policies
from tests.infra.manifests import KUBERNETES, OVERLAYS, Object, clusters, containers, monitoring, overlay, platform, pods, schema


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_what_kuberay_defines(name: str) -> None:
    for each in overlay(name):
        if each["apiVersion"].startswith("ray.io/"):
            jsonschema.Draft7Validator(schema(each["kind"])).validate(each)


def test_the_schema_refuses_a_word_that_kuberay_does_not_know() -> None:
    [job] = copy.deepcopy(overlay("train"))
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema("RayJob")).validate(job)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_are_what_kubernetes_defines(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (make infra)").validate
    for pod in pods(overlay(name)):
        whole = {"restartPolicy": "Never"} | pod
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": whole}, "1.32", strict=True)


@pytest.mark.parametrize("objects", [platform, lambda: overlay("cluster"), monitoring], ids=["platform", "cluster", "monitoring"])
def test_kubernetes_own_objects_are_what_it_defines(objects: Callable[[], list[Object]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (make infra)").validate
    own = [each for each in objects() if not each["apiVersion"].startswith(("kueue", "ray.io", "monitoring.coreos.com"))]
    assert own
    for each in own:
        validate(each, "1.32", strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_keeps_every_policy(name: str) -> None:
    assert policies.broken(overlay(name)) == set()


def test_the_platform_keeps_every_policy() -> None:
    assert policies.broken(platform()) == set()


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "cluster"])
def test_an_entry_point_is_a_command_whose_settings_are_right(name: str) -> None:
    for job in overlay(name):
        words = shlex.split(job["spec"]["entrypoint"])
        assert words[:4] == ["attempt", "python", "-m", "pipelines"]
        assert words[4] in ("train", "sweep")
        config.load(words[5], [word for word in words[6:] if "=" in word and "(" not in word])


_KUBECTL = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed: what it makes of infra/ is not looked at")


@_KUBECTL
def test_every_image_of_ours_is_named_anew() -> None:
    objects = [*platform(), *(each for name in OVERLAYS for each in overlay(name))]
    ours = {each["image"] for each in containers(objects) if "raylway" in each["image"]}
    assert ours == {"registry.example/raylway:0.1.0-cuda", "registry.example/raylway-mlflow:0.1.0"}


@_KUBECTL
def test_every_secret_that_pods_read_is_made_by_the_script() -> None:
    script = KUBERNETES / "secrets.sh"
    printed = subprocess.run([script], capture_output=True, text=True, check=True).stdout
    made = {(each["metadata"]["name"], key) for each in yaml.safe_load_all(printed) for key in each["data"]}
    objects = [*platform(), *(each for name in OVERLAYS for each in overlay(name))]
    references = [env["valueFrom"]["secretKeyRef"] for each in containers(objects) for env in each.get("env", ()) if "valueFrom" in env]
    assert {(each["name"], each["key"]) for each in references} == made
    values = [value for each in yaml.safe_load_all(printed) for key, value in each["data"].items() if key != "username"]
    assert len(set(values)) == 4
    assert all(len(base64.b64decode(value)) == 48 for value in values)


def test_the_queue_that_runs_name_is_there() -> None:
    there = {each["metadata"]["name"] for each in platform() if each["kind"] == "LocalQueue"}
    assert {job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for job in overlay("train")} <= there


def _cluster(objects: list[Object]) -> Any:
    return next(clusters(objects))


def _worker(objects: list[Object]) -> Any:
    return _cluster(objects)["workerGroupSpecs"][0]


def _container(objects: list[Object]) -> Any:
    return next(containers(objects))


BREAKS: dict[str, Callable[[list[Object]], Any]] = {
    "images_are_pinned": lambda o: _container(o).update(image="registry.example/raylway:latest"),
    "nothing_runs_as_root": lambda o: next(pods(o))["securityContext"].pop("runAsNonRoot"),
    "nothing_gains_privileges": lambda o: _container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    "no_secret_is_written_down": lambda o: _container(o).update(env=[{"name": "MLFLOW_TRACKING_PASSWORD", "value": "sesame"}]),
    "resources_are_stated": lambda o: _worker(o)["template"]["spec"]["containers"][0]["resources"]["requests"].update(
        {"nvidia.com/gpu": 2}
    ),
    "nothing_is_public": lambda o: o.append({"kind": "Service", "metadata": {"name": "head"}, "spec": {"type": "LoadBalancer"}}),
    "clusters_ask_for_a_token": lambda o: _cluster(o).pop("authOptions"),
    "ray_is_the_one_that_is_pinned": lambda o: _cluster(o).update(rayVersion="2.59.0"),
    "heads_do_no_work": lambda o: _cluster(o)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
    "workers_have_time_to_leave": lambda o: _worker(o)["template"]["spec"].update(terminationGracePeriodSeconds=60),
    "groups_have_sizes_that_go_together": lambda o: _worker(o).update(replicas=9),
    "runs_end_and_are_tried_again": lambda o: o[0]["spec"].pop("backoffLimit"),
    "what_comes_again_is_not_tried_again": lambda o: o[0]["spec"].update(entrypoint="python -m pipelines train cnn"),
    "entry_points_are_argument_lists": lambda o: o[0]["spec"].update(entrypoint="attempt python -m pipelines train cnn; curl example.org"),
    "storage_outlives_the_nodes": lambda o: _worker(o)["template"]["spec"]["volumes"].pop(0),
    "names_are_short_labels": lambda o: o[0]["metadata"].update(name="Train_1"),
}


MORE_BREAKS: list[tuple[str, Callable[[list[Object]], Any]]] = [
    ("runs_end_and_are_tried_again", lambda o: o[0]["spec"].update(ttlSecondsAfterFinished=3600)),
    ("nothing_runs_as_root", lambda o: _container(o)["securityContext"].update(runAsUser=0)),
    ("nothing_gains_privileges", lambda o: _container(o)["securityContext"].update(privileged=True)),
    (
        "no_secret_is_written_down",
        lambda o: _container(o).update(env=[{"name": "STORE", "value": "postgresql://mlflow:sesame@postgres/mlflow"}]),
    ),
    ("no_secret_is_written_down", lambda o: o.append({"kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "sesame"}})),
    ("nothing_is_public", lambda o: o.append({"kind": "Ingress", "metadata": {"name": "door"}})),
    ("nothing_is_public", lambda o: _container(o).update(ports=[{"containerPort": 8265, "hostPort": 8265}])),
]


@pytest.mark.parametrize(("policy", "change"), MORE_BREAKS)
def test_another_change_breaks_it_too(policy: str, change: Callable[[list[Object]], Any]) -> None:
    objects = copy.deepcopy(overlay("train"))
    change(objects)
    assert policies.broken(objects) == {policy}


def test_the_pods_of_a_cron_job_are_looked_at() -> None:
    pod = {"containers": [{"name": "nightly", "image": "registry.example/raylway"}]}
    job = {"kind": "CronJob", "metadata": {"name": "nightly"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": pod}}}}}
    assert {"images_are_pinned", "nothing_runs_as_root", "resources_are_stated"} <= policies.broken([job])


def test_every_policy_has_something_that_breaks_it() -> None:
    assert set(BREAKS) == {policy.__name__ for policy in policies.ALL}


@pytest.mark.parametrize("policy", BREAKS)
def test_one_change_breaks_this_policy_and_no_other(policy: str) -> None:
    objects = copy.deepcopy(overlay("train"))
    BREAKS[policy](objects)
    assert policies.broken(objects) == {policy}
