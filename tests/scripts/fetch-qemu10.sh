#!/usr/bin/env bash
# Fetches the QEMU 10 of Debian's bookworm-backports into target/qemu10, beside the installed QEMU and without
# installing it, and writes target/qemu10/qemu-system-x86_64 to run it, and qemu-img, qemu-io and qemu-nbd likewise.
# Tests use them to show that the gateway protects more than one release, and as the NBD client that has extended
# headers. Needs apt-get and dpkg-deb, but no root: apt works with lists of its own.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/target/qemu10
suite=bookworm-backports

die() { echo "tests/scripts/fetch-qemu10.sh: $*" >&2; exit 1; }

programs="qemu-system-x86_64 qemu-img qemu-io qemu-nbd"
all_run() {
  for program in $programs; do
    "$out/$program" --version >/dev/null 2>&1 || return 1
  done
}
if all_run; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  die "QEMU 10 comes from Debian's $suite, but there is no apt-get and dpkg-deb here"
fi
busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 ||
  die "a static busybox is missing; run tests/scripts/setup.sh"
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
[ "$codename" = bookworm ] || die "this is $codename; QEMU 10 is fetched from $suite, which fits Debian 12 (bookworm) only"

# Where this machine gets Debian from already: a mirror, maybe, and then no other host may be reachable.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' 'Identifier: Packages' |
  awk '$2 == "Debian" && $3 == "bookworm" {print $1; exit}')
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Identifier: Packages' |
  awk '$2 == "bookworm" {print $1; exit}')
[ -n "$mirror" ] || die "apt has no source for Debian bookworm, so there is none to derive $suite from"

rm -rf "$out"
mkdir -p "$out"/apt/{lists,archives}/partial "$out/apt/empty"
trap 'rm -rf "$out/apt"' EXIT
key=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$key" ] || die "$key is missing; install debian-archive-keyring"
for name in bookworm "$suite"; do
  echo "deb [signed-by=$key] $mirror $name main"
done >"$out/apt/sources.list"

private_apt() {
  apt-get -qq -o Dir::Etc::sourcelist="$out/apt/sources.list" -o Dir::Etc::sourceparts="$out/apt/empty" \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$out/apt/empty" \
    -o Dir::State="$out/apt" -o Dir::State::lists="$out/apt/lists" -o Dir::State::status=/var/lib/dpkg/status \
    -o Dir::Cache="$out/apt" -o Dir::Cache::archives="$out/apt/archives" \
    -o Debug::NoLocking=true -o APT::Sandbox::User= -o APT::Get::List-Cleanup=false "$@"
}

private_apt update || die "$suite could not be read from this machine's Debian source; it may not mirror backports"
# The resolver finds out which libraries are missing or too old here; nothing is installed.
private_apt install --yes --download-only --no-install-recommends --target-release "$suite" \
  qemu-system-x86 qemu-utils >/dev/null ||
  die "the packages of QEMU 10 could not be fetched"
# Packages that are installed in the right version are not downloaded, but are needed in one tree with the rest.
(cd "$out/apt/archives" && for package in qemu-system-x86 qemu-utils qemu-system-common qemu-system-data seabios ipxe-qemu; do
  compgen -G "${package}_*.deb" >/dev/null || private_apt download "$package/$suite" 2>/dev/null ||
    private_apt download "$package"
done) || die "the firmware packages of QEMU 10 could not be fetched"

for package in "$out"/apt/archives/*.deb; do
  dpkg-deb -x "$package" "$out/root"
done
# Run by a static shell: an LD_PRELOAD that is meant for QEMU (it hands out a userfaultfd of the process that it is
# loaded into) would otherwise act on the shell as well. A static binary ignores it and exec passes it on.
for program in $programs; do
  firmware=""
  [ "$program" != qemu-system-x86_64 ] ||
    firmware="-L '$out/root/usr/share/qemu' -L '$out/root/usr/share/seabios' -L '$out/root/usr/lib/ipxe/qemu'"
  cat >"$out/$program" <<WRAPPER
#!$busybox sh
LD_LIBRARY_PATH="$out/root/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH
exec "$out/root/usr/bin/$program" $firmware "\$@"
WRAPPER
  chmod +x "$out/$program"
done
all_run || die "the programs of QEMU 10 were fetched and do not run; see what $out/qemu-img --version says"
"$out/qemu-system-x86_64" --version | head -n 1
