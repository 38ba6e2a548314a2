# Sourced by backup.sh and restore.sh: one database by its URL, SQLite or PostgreSQL.
# shellcheck shell=bash

fail() {
  echo "$0: $*" >&2
  exit 1
}

# read_url NAME: the URL in the variable NAME or in the file that NAME_FILE names, as libpq and sqlite3 understand it.
read_url() {
  local file=$1_FILE url=${!1:-}
  if [ -z "$url" ] && [ -n "${!file:-}" ]; then url=$(cat "${!file}"); fi
  [ -n "$url" ] || fail "$1 is not set: give the database's URL"
  case $url in
    sqlite:///*) echo "$url" ;;
    postgresql*://*) echo "postgresql://${url#*://}" ;;
    *) fail "$1 is neither sqlite:///path nor postgresql://...: check it" ;;
  esac
}

# as_owner URL COMMAND...: run a client of PostgreSQL with the URL's password in its environment, where no list of
# processes shows it, and the URL without it as its last argument.
as_owner() {
  local url=$1 login password=
  shift
  login=${url#postgresql://} login=${login%%@*}
  if [[ $url == *@* && $login == *:* ]]; then
    password=${login#*:}
    url=postgresql://${login%%:*}@${url#*@}
  fi
  # Percent-encoded in a URL, plain in the environment.
  PGPASSWORD=$(printf '%b' "${password//%/\\x}") "$@" "$url"
}

is_sqlite() { [[ $1 == sqlite:///* ]]; }
path_of() { echo "${1#sqlite:///}"; }

# dump URL FILE: a copy of one moment, taken beside writers.
dump() {
  if is_sqlite "$1"; then
    sqlite3 "$(path_of "$1")" ".timeout 30000" ".backup '$2'"
  else
    as_owner "$1" pg_dump --format=custom --no-owner --no-privileges --file="$2"
  fi
}

# must_be_empty URL
must_be_empty() {
  local tables
  if is_sqlite "$1"; then
    [ ! -s "$(path_of "$1")" ] || fail "$(path_of "$1") is there already: move it away, with -wal and -shm beside it"
  else
    tables=$(as_owner "$1" psql --no-psqlrc --tuples-only --no-align --command \
      "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
    [ "$tables" = 0 ] || fail "the database ${1##*/} holds $tables tables: restore into an empty one"
  fi
}

# load FILE URL
load() {
  if is_sqlite "$2"; then
    mkdir -p "$(dirname "$(path_of "$2")")"
    sqlite3 "$(path_of "$2")" ".restore '$1'" "PRAGMA integrity_check" | grep -qx ok || fail "$1 is damaged"
  else
    as_owner "$2" load_archive "$1"
  fi
}

# load_archive FILE URL
load_archive() {
  pg_restore --exit-on-error --single-transaction --no-owner --no-privileges --dbname="$2" "$1"
}
