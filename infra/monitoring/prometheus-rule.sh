#!/usr/bin/env bash
# Print the alerts as the Prometheus operator wants them: an object around rules.yaml.
#   infra/monitoring/prometheus-rule.sh | kubectl apply --filename -
set -euo pipefail
cat <<'HEADER'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: raylway, namespace: monitoring, labels: {release: prometheus}}
spec:
HEADER
sed 's/^/  /' "$(dirname "$0")/rules.yaml"
