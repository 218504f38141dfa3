#!/usr/bin/env bash
# Builds the guest with a database: Debian's cloud kernel, and on an ext4 disk Debian's redis-server with the libraries that
# it depends on, as the packages have them, and a busybox for the rest. A second ext4 disk is for its data. Leaves vmlinuz, initrd.gz,
# cmdline, root.img and data.img in target/guest-db, and does next to nothing when they are up to date.
# Packages are fetched once with apt-get, from the sources and with the checks of this machine; to have newer ones, remove
# target/guest-db/debs. No root is needed, nothing is mounted and nothing of the packages is run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
guest=$root/target/guest
out=$root/target/guest-db
root_mib=256 data_mib=512

die() { echo "tests/guest/build-db.sh: $*" >&2; exit 1; }

# Tools for administrators are not on everyone's PATH.
PATH=$PATH:/usr/sbin:/sbin
for tool in cpio gzip sha256sum flock mkfs.ext4; do
  command -v "$tool" >/dev/null || die "$tool is missing; run tests/scripts/setup.sh"
done
# The kernel and its modules are those of the small guest.
"$here/build.sh"

mkdir -p "$out"
exec 9>"$out/.lock"
flock 9

# As if nothing at all were installed: what the packages need is in the list, whatever this machine has.
closure() {
  apt-get install --simulate --no-install-recommends -o Dir::State::status=/dev/null redis-server 2>/dev/null |
    awk '/^Inst / {version = $3; sub(/^\(/, "", version); print $2 "=" version}'
}

# Of all that they depend on, only what the program is linked with: adduser, perl and the like serve to install them.
wanted() { closure | grep -E '^(redis-|lib)' | grep -vE '^lib(perl|[a-z-]+-perl|pam|semanage|sepol|audit|gdbm|db)' || true; }

fetch() {
  local packages fetched=$out/debs.new
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "the database comes from Debian's package redis-server, but there is no apt-get here"
  packages=$(wanted)
  if [ -z "$packages" ]; then
    # A fresh machine may have no package lists yet.
    { if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi; } >&2 || true
    packages=$(wanted)
  fi
  [ -n "$packages" ] || die "apt knows no package redis-server; the guest needs Debian's package sources"
  echo "fetching $(wc -w <<<"$packages") packages of redis-server" >&2
  rm -rf "$fetched"
  mkdir "$fetched"
  # shellcheck disable=SC2086 # one word for each package
  (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root base-files $packages >&2) ||
    die "the packages could not be fetched: no mirror answered, or it has newer ones; see above, and try apt-get update"
  rm -rf "$out/debs"
  mv "$fetched" "$out/debs"
}

[ -d "$out/debs" ] || fetch

inputs=$(cat "$out"/debs/*.deb "$guest/vmlinuz" "$guest/initrd.gz" "$here/cmdline" "$here/init-db" "$here/initrd-db" \
  "${BASH_SOURCE[0]}" | sha256sum)
if [ -f "$out/root.img" ] && [ -f "$out/data.img" ] && [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi
rm -f "$out/inputs"

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The initrd of the small guest with another first process, and without the witness.
mkdir "$work/initrd"
(cd "$work/initrd" && gzip -dc "$guest/initrd.gz" | cpio --quiet -idm --no-preserve-owner)
rm -f "$work/initrd/bin/witness"
mkdir -p "$work/initrd/root"
install -m 755 "$here/initrd-db" "$work/initrd/init"
(cd "$work/initrd" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -9n >"$work/initrd.gz"

tree=$work/tree
mkdir "$tree"
for deb in "$out"/debs/*.deb; do dpkg-deb -x "$deb" "$tree"; done
rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale" "$tree/usr/lib/x86_64-linux-gnu/gconv"
mkdir -p "$tree"/{dev,proc,sys,run,tmp,sbin,var/lib/redis}
cp "$work/initrd/bin/busybox" "$tree/bin/busybox"
install -m 755 "$here/init-db" "$tree/sbin/init"

# The guest's own loader must find all that its server is linked with in its own folders.
libraries=$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu
loader=$(IFS=: && find $libraries -maxdepth 1 -name ld-linux-x86-64.so.2 2>/dev/null | head -n 1 || true)
[ -n "$loader" ] || die "the packages have no loader of programs; remove $out/debs and try again"
missing=$("$loader" --library-path "$libraries" --list "$tree/usr/bin/redis-server" |
  grep -v "$tree" | grep '=>' || true)
[ -z "$missing" ] || die "redis-server needs libraries that were not fetched: $missing"

image() { # NAME MIB FOLDER LABEL
  truncate -s "$2M" "$work/$1"
  # Whole from the start: what the kernel would do later in the background would be a load that nobody asked for.
  mkfs.ext4 -q -F -L "$4" -m 0 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$3" "$work/$1"
}
image root.img "$root_mib" "$tree" root
mkdir "$work/empty"
image data.img "$data_mib" "$work/empty" data

cp "$guest/vmlinuz" "$work/vmlinuz"
cp "$here/cmdline" "$work/cmdline"
# Whoever starts a guest meanwhile sees the old files or the new ones.
(cd "$work" && mv vmlinuz initrd.gz cmdline root.img data.img "$out/")
echo "$inputs" >"$out/inputs"
echo "built $out/root.img with redis-server $(cd "$out/debs" && echo redis-server_*.deb | cut -d_ -f2)"
