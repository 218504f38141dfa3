#!/usr/bin/env bash
# Builds the small guest of the tests and the demo: Debian's cloud kernel, a static busybox, the virtio modules and
# the witness. Leaves vmlinuz, initrd.gz and further modules of that kernel (modules/) in target/guest, and does next to
# nothing when they are up to date.
# Needs apt-get and dpkg-deb (for the kernel package, once), busybox-static, cpio, gzip and cargo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/target/guest
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
  failover net_failover virtio_net"
# For the test of vsock, which makes an initrd of its own (vsock-initrd.sh).
vsock_modules="vsock vmw_vsock_virtio_transport_common vsock_loopback"
# Kept out of the workspace's own build: the flags differ, and cargo would build everything anew each time.
triple=x86_64-unknown-linux-gnu
witness=$root/target/guest-build/$triple/release/witness

die() { echo "tests/guest/build.sh: $*" >&2; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "the guest is built for x86_64 only, this is $(uname -m)"
for tool in cargo cpio gzip sha256sum flock; do
  command -v "$tool" >/dev/null || die "$tool is missing; run tests/scripts/setup.sh"
done
busybox=$(command -v busybox) || die "busybox is missing; run tests/scripts/setup.sh"
# A busybox with shared libraries would not start in the guest.
! ldd "$busybox" >/dev/null 2>&1 || die "$busybox is not static; install busybox-static (tests/scripts/setup.sh)"

mkdir -p "$out"
# One build at a time: tests that run beside each other may all ask for the guest.
exec 9>"$out/.lock"
flock 9

# Prints the path of the kernel package, fetching it if it was never fetched.
kernel_package() {
  local name cached
  cached=$(find "$out" -maxdepth 1 -name 'linux-image-*.deb' | sort -V | tail -n 1)
  if [ -n "$cached" ]; then echo "$cached"; return; fi
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "the guest's kernel comes from Debian's package linux-image-cloud-amd64, but there is no apt-get here"
  name=$(cloud_kernel)
  if [ -z "$name" ]; then
    # A fresh machine may have no package lists yet.
    { if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi; } >&2 || true
    name=$(cloud_kernel)
  fi
  [ -n "$name" ] || die "apt knows no package linux-image-cloud-amd64; the guest needs Debian's package sources"
  echo "fetching $name" >&2
  (cd "$out" && apt-get download -qq "$name" >&2) || die "$name could not be fetched; try apt-get update"
  cached=$(find "$out" -maxdepth 1 -name "$name*.deb")
  [ -n "$cached" ] || die "apt-get fetched no $name"
  echo "$cached"
}

cloud_kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}'; }

package=$(kernel_package)
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C strip=symbols" \
  cargo build --quiet --release --package witness --manifest-path "$root/Cargo.toml" \
  --target "$triple" --target-dir "$root/target/guest-build"

# Beside the kernel, for whoever starts the guest from the folder alone.
cp "$here/cmdline" "$out/cmdline"

inputs=$(sha256sum "$package" "$witness" "$busybox" "$here/init" "${BASH_SOURCE[0]}" | sha256sum)
if [ -f "$out/vmlinuz" ] && [ -f "$out/initrd.gz" ] && [ -d "$out/modules" ] && [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "$package" "$work/kernel"
tree=$work/tree
mkdir -p "$tree"/{bin,dev,proc,sys,lib/modules}
cp "$busybox" "$tree/bin/busybox"
cp "$witness" "$tree/bin/witness"
install -m 755 "$here/init" "$tree/init"
# Unpacks one module of the package into a folder.
unpack_module() {
  local found
  found=$(find "$work/kernel" -name "$1.ko*" -print -quit)
  [ -n "$found" ] || die "$(basename "$package") has no module $1"
  case $found in
    *.xz) xz -dc "$found" ;;
    *.zst) zstd -dcq "$found" ;;
    *) cat "$found" ;;
  esac >"$2/$1.ko"
}
mkdir "$work/modules"
for module in $modules; do unpack_module "$module" "$tree/lib/modules"; done
for module in $vsock_modules; do unpack_module "$module" "$work/modules"; done
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -9n >"$work/initrd.gz"
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
# Whoever starts a guest meanwhile sees the old files or the new ones.
mv "$work/vmlinuz" "$work/initrd.gz" "$out/"
rm -rf "$out/modules"
mv "$work/modules" "$out/"
echo "$inputs" >"$out/inputs"
echo "built $out/vmlinuz and $out/initrd.gz"
