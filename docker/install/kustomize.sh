#!/usr/bin/env bash
# Build Kustomize into the cache, once, and print where it is. Where it cannot be had, says why on standard error, prints
# nothing and ends well: the tests that want it skip with the reason.
#
# Usage: kustomize.sh       FLYWHEEL_TEST_KUSTOMIZE names one that is there already; FLYWHEEL_CACHE moves the cache.
set -euo pipefail

version=5.7.1

if [ -n "${FLYWHEEL_TEST_KUSTOMIZE:-}" ]; then
  echo "$FLYWHEEL_TEST_KUSTOMIZE"
  exit 0
fi

cache=${FLYWHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/constitutional-flywheel}
folder=$cache/kustomize-$version
if [ -x "$folder/kustomize" ]; then
  echo "$folder/kustomize"
  exit 0
fi

if ! command -v go >/dev/null 2>&1; then
  echo "No Go to build Kustomize $version with: its tests are skipped (install Go 1.25 or newer)" >&2
  exit 0
fi

mkdir -p "$folder"
# Two runs side by side build it once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/kustomize" ]; then
  echo "Building Kustomize $version (the first time a minute)" >&2
  partial=$(mktemp -d "$folder/.build-XXXXXX")
  if ! GOBIN=$partial go install "sigs.k8s.io/kustomize/kustomize/v5@v$version" >&2; then
    rm -rf "$partial"
    echo "Kustomize $version could not be built: its tests are skipped" >&2
    exit 0
  fi
  mv "$partial/kustomize" "$folder/kustomize"
  rmdir "$partial"
fi
echo "$folder/kustomize"
