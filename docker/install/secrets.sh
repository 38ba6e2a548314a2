#!/usr/bin/env bash
# Draw an installation's secrets, one file each; what is there already stays. Compose mounts them, and
# `kubectl create secret generic flywheel-secrets --from-file=FOLDER` takes the folder as it is.
#
# Usage: secrets.sh FOLDER       POSTGRES_HOST (postgres), POSTGRES_PORT (5432), REDIS_HOST (redis), REDIS_PORT (6379)
#
# The folder is its owner's alone; the files in it may be read by the containers' accounts, which have other numbers.
# To draw one anew: remove its file (and the URL that holds it), run this again. Which may be drawn anew, and at what
# cost: docker/README.md, "Rotate secrets".
set -euo pipefail

folder=${1:?usage: $0 FOLDER}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

# draw NAME: 32 random bytes in hex.
draw() {
  [ -s "$1" ] || printf '%s' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >"$1"
}

# put NAME VALUE
put() {
  [ -s "$1" ] || printf '%s' "$2" >"$1"
}

# Passwords of the stores, and the URLs that hold them.
for name in postgres_password flywheel_password audit_password redis_password grafana_password; do draw "$name"; done
database=${POSTGRES_HOST:-postgres}:${POSTGRES_PORT:-5432}
put database_url "postgresql+psycopg://flywheel:$(cat flywheel_password)@$database/flywheel"
put audit_database_url "postgresql+psycopg://audit:$(cat audit_password)@$database/audit"
put redis_url "redis://:$(cat redis_password)@${REDIS_HOST:-redis}:${REDIS_PORT:-6379}/0"
put redis_conf "requirepass $(cat redis_password)"

# Tokens between the parts, and keys of what is stored.
for name in web_token policy_token audit_token subject_key digest_key feedback_key audit_digest_key \
  audit_signing_key cache_key; do
  draw "$name"
done
chmod 444 ./*
