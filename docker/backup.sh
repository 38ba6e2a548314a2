#!/usr/bin/env bash
# Copy what an installation must not lose: the store, the audit log with its signed heads, and the model registry. The
# system may run meanwhile. Uses sqlite3 or pg_dump as the URLs say.
#
# Usage: backup.sh FOLDER        a new folder; with
#   DATABASE_URL         sqlite:////path/flywheel.db or postgresql://...     (or DATABASE_URL_FILE)
#   AUDIT_DATABASE_URL   the same of the audit log                           (or AUDIT_DATABASE_URL_FILE)
#   AUDIT_HEADS          the audit engine's file of signed heads
#   ARTIFACTS            the model registry's folder, training.artifacts
#
# The order is what makes the copies fit each other. The store comes first, so that what it calls told the audit log has;
# the heads come before the log, so that every entry that they sign is in it; the files of the models come after the rows
# that name them. Keys are not in it: keep them apart from the data (docker/README.md, "Back up").
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=docker/databases.sh
. "$here/databases.sh"

folder=${1:?usage: $0 FOLDER}
: "${AUDIT_HEADS:?name the file of signed heads}" "${ARTIFACTS:?name the folder of the model registry}"
store=$(read_url DATABASE_URL) log=$(read_url AUDIT_DATABASE_URL)
umask 077
mkdir -p "$(dirname "$folder")"
mkdir "$folder"
partial=$folder/partial
mkdir "$partial"

dump "$store" "$partial/store"
if [ -f "$AUDIT_HEADS" ]; then cp "$AUDIT_HEADS" "$partial/audit-heads.jsonl"; else : >"$partial/audit-heads.jsonl"; fi
dump "$log" "$partial/audit"
mkdir -p "$ARTIFACTS"
tar --create --gzip --file "$partial/models.tar.gz" --directory "$ARTIFACTS" .
(cd "$partial" && sha256sum -- * >SHA256SUMS)
mv "$partial"/* "$folder"/
rmdir "$partial"
# Only a copy that is whole has this list at its place.
echo "$folder: $(du -sh "$folder" | cut -f 1)"
