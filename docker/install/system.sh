#!/usr/bin/env bash
# Install what a fresh Debian or Ubuntu lacks. Does nothing where nothing is missing.
#
# Usage: system.sh demo|test
#   demo  a Python 3.11 to 3.13 that can make virtual environments; broker and Redis come in wheels
#   test  also Redis, PostgreSQL, Java and Maven (for Apache Kafka), Prometheus with promtool, chromium (for the
#         pages), shellcheck, libfaketime (for clocks that jump)
#
# Debian's packages start their own Redis, PostgreSQL and Prometheus on the usual ports; nothing here uses those.
#
# Where it may not install, it says which command would, and ends well: what then is missing is reported by
# the step that needs it, and tests skip it with the reason.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
set_name=${1:-}
case $set_name in
  demo | test) ;;
  *) echo "usage: $0 demo|test" >&2; exit 2 ;;
esac

has() { command -v "$1" >/dev/null 2>&1; }

# Kafka 4 needs Java 17; Java 8 called itself 1.8.
has_java_17() {
  local major
  has java || return 1
  major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${major:-0}" -ge 17 ]
}

has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || has initdb; }

# The python3 of the distribution where it is of a version that fits, else one that it offers beside it.
python_packages() {
  local version
  for version in $(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true) 3.13 3.12 3.11; do
    case $version in
      3.11 | 3.12 | 3.13)
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
          printf '%s\n' "python$version" "python$version-venv"
          return
        fi ;;
    esac
  done
  printf '%s\n' python3 python3-venv
}

missing() {
  "$here/find-python.sh" >/dev/null 2>&1 || python_packages
  if [ "$set_name" = test ]; then
    has redis-server || has valkey-server || echo redis-server
    has_postgresql || echo postgresql
    has_java_17 || echo default-jre-headless
    has mvn || echo maven
    has promtool || echo prometheus
    has chromium || echo chromium
    has shellcheck || echo shellcheck
    has faketime || echo faketime
  fi
}

mapfile -t packages < <(missing)
[ ${#packages[@]} -gt 0 ] || exit 0

if ! has apt-get; then
  echo "Not a Debian or Ubuntu: install what corresponds to these packages: ${packages[*]}" >&2
  exit 0
fi

elevate=()
if [ "$(id -u)" -ne 0 ]; then
  # Without a terminal sudo could only wait for a password that nobody types.
  if has sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    elevate=(sudo)
  else
    echo "Missing, and only root can install it: sudo apt-get install ${packages[*]}" >&2
    exit 0
  fi
fi

apt=("${elevate[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
"${apt[@]}" update >/dev/null || echo "apt-get update failed; going on with the package lists that are there" >&2
mapfile -t packages < <(missing) # again: which Python is offered is known only now
echo "Installing: ${packages[*]}"
if ! "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; then
  echo "Installing failed. By hand: sudo apt-get install ${packages[*]}" >&2
fi
