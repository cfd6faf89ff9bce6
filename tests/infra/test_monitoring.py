"""Alerts and panels speak of metrics that exist, and every alert has a runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from pipelines import metrics_export
from tests.infra.manifests import INFRA, OVERLAYS, clusters, monitoring, overlay
from tests.infra.network import selects

MONITORING = INFRA / "monitoring"
ALERTS = [rule for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
OURS = {metric.exported_as for metric in metrics_export.ALL}


def panels() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "raylway.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def rays() -> set[str]:
    """What Ray's own agents export."""
    import ray.dashboard.modules.reporter.reporter_agent as agent

    return {f"ray_{gauge.name}" for gauge in agent.METRICS_GAUGES.values()}


@pytest.mark.parametrize("expression", [alert["expr"] for alert in ALERTS] + panels())
def test_every_metric_exists(expression: str) -> None:
    named = set(re.findall(r"\bray_\w+", expression))
    assert named or "up{" in expression
    assert named <= OURS | rays()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook(alert: dict) -> None:
    text = (MONITORING / alert["annotations"]["runbook"]).read_text()
    assert len(text) > 100


def test_every_runbook_belongs_to_an_alert() -> None:
    named = {alert["annotations"]["runbook"] for alert in ALERTS}
    assert {f"runbooks/{path.name}" for path in (MONITORING / "runbooks").iterdir()} == named


def test_prometheus_finds_every_node_of_every_overlay() -> None:
    [monitor] = [each["spec"] for each in monitoring() if each["kind"] == "PodMonitor"]
    assert monitor["namespaceSelector"]["matchNames"] == ["raylway"]
    for cluster in (each for name in OVERLAYS for each in clusters(overlay(name))):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert selects(monitor["selector"], group["template"]["metadata"]["labels"])
            # KubeRay 1.7 names 8080 `metrics` by itself; on a head, any port that is named would undo its other defaults
            assert group["rayStartParams"]["metrics-export-port"] == "8080"
            assert not any("ports" in each for each in group["template"]["spec"]["containers"])


def test_the_alerts_know_the_nodes_by_the_job_that_the_monitor_gives_them() -> None:
    [monitor] = [each["spec"] for each in monitoring() if each["kind"] == "PodMonitor"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert {"targetLabel": "job", "replacement": "ray"} in endpoint["relabelings"]
    assert 'up{job="ray"}' in next(alert["expr"] for alert in ALERTS if alert["alert"] == "NodeGone")
    assert [each["job_name"] for each in yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]] == ["ray"]


def test_the_operator_is_given_the_alerts_as_they_are() -> None:
    printed = subprocess.run([MONITORING / "prometheus-rule.sh"], capture_output=True, text=True, check=True).stdout
    rule = yaml.safe_load(printed)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text())


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed: the dashboard's ConfigMap is not looked at")
def test_grafana_is_given_the_dashboard() -> None:
    [made] = [each for each in monitoring() if each["kind"] == "ConfigMap"]
    assert made["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert made["data"]["raylway.json"] == (MONITORING / "grafana" / "dashboards" / "raylway.json").read_text()


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus): the rules are not run")
def test_the_rules_fire_when_they_are_to() -> None:
    done = subprocess.run(["promtool", "test", "rules", "rules.test.yaml"], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
