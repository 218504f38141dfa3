#!/usr/bin/env bash
# Installs, by name and only if they are missing, the Debian packages that building, the demo and the tests need.
# Needs root or sudo only when something is missing. Rust itself is expected to be there.
set -euo pipefail

die() { echo "tests/scripts/setup.sh: $*" >&2; exit 1; }

# command or file that shows a package to be there, and the package
needs="
qemu-system-x86_64 qemu-system-x86
qemu-img           qemu-utils
busybox            busybox-static
cpio               cpio
gcc                gcc
/usr/include/stdio.h libc6-dev
make               make
xz                 xz-utils
zstd               zstd
flock              util-linux
ip                 iproute2
mkfs.ext4          e2fsprogs
/usr/lib/x86_64-linux-gnu/libelf.so.1 libelf1
/usr/lib/x86_64-linux-gnu/libcrypto.so.3 libssl3
fio                fio
nbdkit             nbdkit
nbd-server         nbd-server
nbdinfo            libnbd-bin
nbdsh              python3-libnbd
losetup            mount
ganesha.nfsd       nfs-ganesha
/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so nfs-ganesha-vfs
rpcbind            rpcbind
/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 libfaketime
"

# Tools for administrators are not on everyone's PATH.
PATH=$PATH:/usr/sbin:/sbin
there() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }

missing=()
while read -r sign package; do
  [ -z "$sign" ] || there "$sign" || missing+=("$package")
done <<<"$needs"
# A busybox with shared libraries is of no use in the guest.
if there busybox && ldd "$(command -v busybox)" >/dev/null 2>&1; then missing+=(busybox-static); fi

# The S3 server of the tests is a Python program in an environment of its own.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    die "missing: ${missing[*]}. These are Debian's package names; there is no apt-get here, so install them by other means"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "missing: ${missing[*]}. Install them as root, there is no sudo here"
    as_root=(sudo DEBIAN_FRONTEND=noninteractive)
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt_get() { "${as_root[@]}" apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }
  echo "installing ${missing[*]}"
  apt_get update || echo "the package lists could not be refreshed; going on with those that are here" >&2
  if [[ " ${missing[*]} " == *" qemu-system-x86 "* ]]; then
    # A qemu-utils from backports breaks the release's qemu-system-common. Left alone, apt then fails or removes
    # qemu-utils, so the two are always installed in one version, even if that takes qemu-utils back.
    release=$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ {print $2}')
    case $release in "" | "(none)") die "apt knows no qemu-system-x86; check its sources" ;; esac
    missing+=("qemu-utils=$release")
  fi
  apt_get install --yes --no-install-recommends --allow-downgrades "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]}"
fi

there cargo || die "there is no cargo; install Rust (the release that Cargo.toml names, or newer) and run this again"
fio --enghelp 2>/dev/null | grep -qw nbd || die "this fio has no nbd engine; the benchmarks need Debian's package fio"

moto=5.2.5
home=$(dirname "${BASH_SOURCE[0]}")/../../target/moto
if [ "$(cat "$home/version" 2>/dev/null)" != "$moto" ]; then
  echo "installing moto's S3 server into target/moto"
  mkdir -p "$(dirname "$home")"
  python3 -m venv --clear "$home" && "$home/bin/pip" --quiet --disable-pip-version-check install "moto[s3,server]==$moto" </dev/null ||
    die "moto $moto could not be installed into target/moto; is PyPI reachable?"
  echo "$moto" >"$home/version"
fi
