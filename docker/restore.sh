#!/usr/bin/env bash
# Put back what backup.sh copied, into databases that are empty. The system must be stopped. Takes the same variables.
#
# Usage: restore.sh FOLDER
#
# Refuses where a copy is not whole, and where something is there already: nothing is overwritten.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=docker/databases.sh
. "$here/databases.sh"

folder=${1:?usage: $0 FOLDER}
: "${AUDIT_HEADS:?name the file of signed heads}" "${ARTIFACTS:?name the folder of the model registry}"
store=$(read_url DATABASE_URL) log=$(read_url AUDIT_DATABASE_URL)
(cd "$folder" && sha256sum --check --quiet --strict SHA256SUMS) || fail "$folder is not whole: take another copy"
[ ! -s "$AUDIT_HEADS" ] || fail "$AUDIT_HEADS is there already: move it away, it is evidence"
[ -z "$(ls -A "$ARTIFACTS" 2>/dev/null)" ] || fail "$ARTIFACTS is not empty: move it away"
must_be_empty "$store"
must_be_empty "$log"

umask 077
load "$folder/store" "$store"
load "$folder/audit" "$log"
mkdir -p "$(dirname "$AUDIT_HEADS")" "$ARTIFACTS"
[ ! -s "$folder/audit-heads.jsonl" ] || cp "$folder/audit-heads.jsonl" "$AUDIT_HEADS"
tar --extract --gzip --file "$folder/models.tar.gz" --directory "$ARTIFACTS"
echo "$folder is restored"
