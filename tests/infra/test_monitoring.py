"""Alerts and panels speak of metrics that exist, and every alert has a runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from pipelines import gauges
from tests.infra.manifests import INFRA

MONITORING = INFRA / "monitoring"
ALERTS = [rule for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
OURS = {metric.exported_as for metric in gauges.ALL}


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


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus): the rules are not run")
def test_the_rules_fire_when_they_are_to() -> None:
    done = subprocess.run(["promtool", "test", "rules", "rules.test.yaml"], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
