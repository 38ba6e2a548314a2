#!/usr/bin/env bash
# Build the OpenTelemetry Collector that otel/builder.yaml lists into the cache, once, and print where it is. Where it
# cannot be had, says why on standard error, prints nothing and ends well: the tests that want it skip with the reason.
#
# Usage: collector.sh [--cached]     --cached prints one that is built already, and builds none.
#        FLYWHEEL_OTELCOL names one that is there already; FLYWHEEL_CACHE moves the cache.
set -euo pipefail

version=0.155.0
manifest=$(cd "$(dirname "$0")/../.." && pwd)/otel/builder.yaml

if [ -n "${FLYWHEEL_OTELCOL:-}" ]; then
  echo "$FLYWHEEL_OTELCOL"
  exit 0
fi

cache=${FLYWHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/constitutional-flywheel}
# Other parts are another collector.
folder=$cache/otelcol-$version-$(sha256sum "$manifest" | cut -c -12)
program=$folder/otelcol-flywheel
if [ -x "$program" ]; then
  echo "$program"
  exit 0
fi
if [ "${1:-}" = --cached ]; then
  exit 0
fi

if ! command -v go >/dev/null 2>&1; then
  echo "No Go to build the OpenTelemetry Collector $version with: its tests are skipped (install Go 1.25 or newer)" >&2
  exit 0
fi

mkdir -p "$folder"
# Two runs side by side build it once.
exec 9>"$folder/.lock"
flock 9
if [ ! -x "$program" ]; then
  echo "Building the OpenTelemetry Collector $version (the first time some minutes)" >&2
  # The sources stay: where they lie and the flags decide whether Go's own cache is of use to a later build.
  source=$folder/source
  if ! {
    GOBIN=$folder go install "go.opentelemetry.io/collector/cmd/builder@v$version" &&
      rm -rf "$source" && mkdir "$source" && cp "$manifest" "$source/builder.yaml" && cd "$source" &&
      "$folder/builder" --config builder.yaml --skip-compilation && cd parts &&
      CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -ldflags '-s -w' -o "$folder/.partial" .
  } >"$folder/build.log" 2>&1; then
    tail -n 20 "$folder/build.log" >&2
    echo "The OpenTelemetry Collector $version could not be built: its tests are skipped ($folder/build.log)" >&2
    exit 0
  fi
  mv "$folder/.partial" "$program"
fi
echo "$program"
