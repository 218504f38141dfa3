#!/usr/bin/env bash
# Makes an initrd whose guest tests vsock within itself: vsock-initrd.sh GUEST EPOCHGATE OUT. GUEST is the folder that build.sh
# fills, EPOCHGATE the binary to test. Needs busybox-static, cpio, strip and libnbd's tools.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest=$1
epochgate=$2
out=$3

die() { echo "tests/guest/vsock-initrd.sh: $*" >&2; exit 1; }

for tool in busybox cpio strip nbdinfo nbdcopy; do
  command -v "$tool" >/dev/null || die "$tool is missing; run tests/scripts/setup.sh"
done
[ -d "$guest/modules" ] || die "there are no modules in $guest; build the guest with \`make guest\`"

tree=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,dev,proc,sys,tmp,lib/modules}
cp "$(command -v busybox)" "$tree/bin/busybox"
install -m 755 "$here/vsock-init" "$tree/init"
cp "$guest"/modules/*.ko "$tree/lib/modules/"
# Without what only a debugger reads it is a tenth of the size.
strip -o "$tree/bin/epochgate" "$epochgate"
cp "$(command -v nbdinfo)" "$(command -v nbdcopy)" "$tree/bin/"
# Libraries and the loader, where the programs look for them.
for program in epochgate nbdinfo nbdcopy; do ldd "$tree/bin/$program"; done |
  grep -o '/[^ ]*' | sort -u |
  while read -r library; do
    mkdir -p "$tree$(dirname "$library")"
    cp -L "$library" "$tree$library"
  done
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$out"
