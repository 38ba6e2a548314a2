#!/usr/bin/env bash
# Write constraints.txt from what the virtual environment holds.
#
# Usage: pin.sh VENV
#
# To take newer versions: VENV/bin/pip install --upgrade PACKAGE..., run the tests, then `make constraints`.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:?usage: $0 VENV}
new=$(mktemp)
trap 'rm -f "$new"' EXIT

{
  echo "# Exact versions of everything installed, also of what is only needed by what we need."
  echo "# Written by \`make constraints\`; python.sh installs by it. A name without use on a platform does no harm."
  # Exact versions only: what was installed from a folder or an address could not be had elsewhere.
  {
    "$venv/bin/python" -m pip --disable-pip-version-check freeze --all --exclude-editable \
      --exclude constitutional-flywheel --exclude pip --exclude presidio-analyzer
    # Not installed with the rest, for what it brings; its version stays the one that was tried.
    grep '^presidio-analyzer==' "$root/constraints.txt"
  } | grep -E '^[A-Za-z0-9._-]+==[^ @/]+$' | LC_ALL=C sort -f
} >"$new"
cat "$new" >"$root/constraints.txt"
echo "constraints.txt: $(grep -c '==' "$root/constraints.txt") versions"
