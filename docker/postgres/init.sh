#!/usr/bin/env bash
# Make two databases with an owner each, when PostgreSQL first starts: who may write the store may not touch the audit
# log. Their passwords lie in FLYWHEEL_PASSWORD_FILE and AUDIT_PASSWORD_FILE.
set -euo pipefail

make() {
  local name=$1 password
  password=$(cat "$2")
  psql -v ON_ERROR_STOP=1 --quiet --username "$POSTGRES_USER" --dbname postgres \
    -v name="$name" -v password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

make flywheel "$FLYWHEEL_PASSWORD_FILE"
make audit "$AUDIT_PASSWORD_FILE"
