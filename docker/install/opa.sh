#!/usr/bin/env bash
# Build Open Policy Agent into the cache, once, and print where it is. Where it cannot be had, says why on standard
# error, prints nothing and ends well: the tests that want it skip with the reason.
#
# Usage: opa.sh       FLYWHEEL_OPA names one that is there already; FLYWHEEL_CACHE moves the cache.
set -euo pipefail

version=1.22.2

if [ -n "${FLYWHEEL_OPA:-}" ]; then
  echo "$FLYWHEEL_OPA"
  exit 0
fi

cache=${FLYWHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/constitutional-flywheel}
folder=$cache/opa-$version
if [ -x "$folder/opa" ]; then
  echo "$folder/opa"
  exit 0
fi

if ! command -v go >/dev/null 2>&1; then
  echo "No Go to build OPA $version with: its tests are skipped (install Go 1.25 or newer)" >&2
  exit 0
fi

mkdir -p "$folder"
# Two runs side by side build it once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/opa" ]; then
  echo "Building OPA $version (the first time some minutes)" >&2
  partial=$(mktemp -d "$folder/.build-XXXXXX")
  if ! GOBIN=$partial go install "github.com/open-policy-agent/opa@v$version" >&2; then
    rm -rf "$partial"
    echo "OPA $version could not be built: its tests are skipped" >&2
    exit 0
  fi
  mv "$partial/opa" "$folder/opa"
  rmdir "$partial"
fi
echo "$folder/opa"
