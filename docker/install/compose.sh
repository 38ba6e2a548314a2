#!/usr/bin/env bash
# Build compose-go's command into the cache, once, and print where it is: what `docker compose config` reads files with,
# without the rest of Docker. Where it cannot be had, says why on standard error, prints nothing and ends well: the tests
# that want it skip with the reason.
#
# Usage: compose.sh       FLYWHEEL_TEST_COMPOSE names one that is there already; FLYWHEEL_CACHE moves the cache.
set -euo pipefail

version=2.9.0

if [ -n "${FLYWHEEL_TEST_COMPOSE:-}" ]; then
  echo "$FLYWHEEL_TEST_COMPOSE"
  exit 0
fi

cache=${FLYWHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/constitutional-flywheel}
folder=$cache/compose-$version
if [ -x "$folder/compose" ]; then
  echo "$folder/compose"
  exit 0
fi

if ! command -v go >/dev/null 2>&1; then
  echo "No Go to build compose-go $version with: its tests are skipped (install Go 1.25 or newer)" >&2
  exit 0
fi

mkdir -p "$folder"
# Two runs side by side build it once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$folder/compose" ]; then
  echo "Building compose-go $version (the first time half a minute)" >&2
  partial=$(mktemp -d "$folder/.build-XXXXXX")
  if ! GOBIN=$partial go install "github.com/compose-spec/compose-go/v2/cmd@v$version" >&2; then
    rm -rf "$partial"
    echo "compose-go $version could not be built: its tests are skipped" >&2
    exit 0
  fi
  mv "$partial/cmd" "$folder/compose"
  rmdir "$partial"
fi
echo "$folder/compose"
