#!/usr/bin/env bash
# Print docker/prometheus/rules.yaml as a PrometheusRule, for the Prometheus Operator.
set -euo pipefail

rules=$(cd "$(dirname "$0")/.." && pwd)/prometheus/rules.yaml
cat <<'MANIFEST'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: flywheel
spec:
MANIFEST
sed 's/^/  /' "$rules"
