#!/usr/bin/env bash
# What an image wants of an environment beyond what a machine wants. Runs while an image is built.
#
# Usage: finish-image.sh VENV
#
# Compiles the sources, because nothing can be compiled later on a read-only root, and lists what is installed, with
# versions, for scanners that do not read Python's own records.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:?usage: $0 VENV}
"$venv/bin/python" -m compileall -q "$root/app" "$root/agents" "$root/models" "$root/otel" "$root/policies"
"$venv/bin/python" -m pip --disable-pip-version-check list --format=json >"$root/packages.json"
rm -rf "${root:?}/var"
