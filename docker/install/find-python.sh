#!/usr/bin/env bash
# Print the first Python 3.11 to 3.13 that can make virtual environments. PYTHON names one to take instead.
set -euo pipefail

fits='
import sys
import ensurepip, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
'

candidates=(python3 python3.13 python3.12 python3.11 /usr/bin/python3)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")

for candidate in "${candidates[@]}"; do
  if "$candidate" -c "$fits" >/dev/null 2>&1; then
    "$candidate" -c 'import sys; print(sys.executable)'
    exit 0
  fi
done

echo "No Python 3.11 to 3.13 with venv among: ${candidates[*]}." >&2
echo "Provide it with: sudo apt-get install python3 python3-venv   (or name one: PYTHON=/path/to/python3.12 make ...)" >&2
exit 1
