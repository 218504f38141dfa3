#!/usr/bin/env bash
# Builds the guest of the laboratory (monitor/lab): Debian's cloud kernel, and on an ext4 disk that is only read Debian's stress-ng,
# SQLite, nginx, gcc, make, fio, Python, curl and what they depend on, with the lab's own program and a kernel module for the faults that only a
# kernel can have. A second disk is for its data. Leaves vmlinuz, initrd.gz, cmdline, root.img and data.img in target/guest-lab, and
# does next to nothing when they are up to date.
# Packages (about 110 MB) are fetched once with apt-get, from the sources and with the checks of this machine; to have newer ones,
# remove target/guest-lab/debs. No root is needed, nothing is mounted, and of the packages only the kernel's build tools are run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
guest=$root/target/guest
out=$root/target/guest-lab
data_mib=768

# What is wanted in the guest.
names="stress-ng sqlite3 nginx-light gcc libc6-dev make fio python3-minimal curl iperf3 bash coreutils findutils tar gzip xz-utils libstb-dev base-files"
# What they depend on to be installed, or for parts that nobody uses here.
unwanted='^(perl|libperl|lib[a-z-]*-perl|dpkg|adduser|passwd|libpam|debconf|usrmerge|init-system|libsemanage|libsepol|mawk|dmsetup'
unwanted+='|python3=|libpython3-stdlib|python3.11=|libgprofng|libtsan|libasan|liblsan|libubsan|libgdbm|libdb5)'

die() { echo "tests/guest/build-lab.sh: $*" >&2; exit 1; }

# Tools for administrators are not on everyone's PATH.
PATH=$PATH:/usr/sbin:/sbin
for tool in cpio gzip sha256sum flock mkfs.ext4 gcc make; do
  command -v "$tool" >/dev/null || die "$tool is missing; run tests/scripts/setup.sh"
done
# The kernel and its modules are those of the small guest.
"$here/build.sh"

mkdir -p "$out"
exec 9>"$out/.lock"
flock 9

# As if nothing at all were installed: what the packages need is in the list, whatever this machine has.
wanted() {
  # shellcheck disable=SC2086 # one word for each package
  apt-get install --simulate --no-install-recommends -o Dir::State::status=/dev/null $names 2>/dev/null |
    awk '/^Inst / {version = $3; sub(/^\(/, "", version); print $2 "=" version}' | grep -vE "$unwanted" || true
}

fetch() {
  local packages fetched=$out/debs.new kernel release
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "the guest is made of Debian's packages, but there is no apt-get here"
  packages=$(wanted)
  if [ -z "$packages" ]; then
    # A fresh machine may have no package lists yet.
    { if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo -n apt-get update -qq; fi; } >&2 || true
    packages=$(wanted)
  fi
  [ -n "$packages" ] || die "apt does not know all of: $names; the guest needs Debian's package sources"
  # linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb: its headers must be of the same build.
  kernel=$(basename "$(find "$guest" -maxdepth 1 -name 'linux-image-*.deb' | sort -V | tail -n 1)" | cut -d_ -f1,2)
  release=${kernel%_*} release=${release#linux-image-}
  echo "fetching $(wc -w <<<"$packages") packages for the laboratory's guest" >&2
  rm -rf "$fetched"
  mkdir -p "$fetched/kernel"
  # shellcheck disable=SC2086 # one word for each package
  (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root $packages >&2) &&
    (cd "$fetched/kernel" && apt-get download -qq -o APT::Sandbox::User=root "linux-headers-$release=${kernel##*_}" \
      "linux-headers-${release%-cloud-amd64}-common=${kernel##*_}" "linux-kbuild-$(cut -d. -f1,2 <<<"$release")" >&2) ||
    die "the packages could not be fetched: no mirror answered, or it has newer ones; see above, and try apt-get update"
  rm -rf "$out/debs"
  mv "$fetched" "$out/debs"
}

[ -d "$out/debs" ] || fetch

# What the root disk is made of, by the names of the packages, which hold their versions; and what the initrd is made of, which has all that
# changes often.
root_inputs=$( (ls "$out/debs"; sha256sum "$here/lab/compile.mk" "${BASH_SOURCE[0]}") | sha256sum)
inputs=$( (echo "$root_inputs"; ls "$out/debs/kernel"; sha256sum "$guest/vmlinuz" "$guest/initrd.gz" "$here"/lab/*) | sha256sum)
if [ "$(cat "$out/inputs" 2>/dev/null)" = "$inputs" ] && [ -f "$out/root.img" ] && [ -f "$out/data.img" ] && [ -f "$out/initrd.gz" ]; then
  exit 0
fi
rm -f "$out/inputs"

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The module, against the headers of the guest's own kernel. Their Makefiles name places where they would be if installed.
headers=$work/headers
mkdir "$headers" "$work/module"
for deb in "$out"/debs/kernel/*.deb; do dpkg-deb -x "$deb" "$headers"; done
build=$(find "$headers/usr/src" -maxdepth 1 -name 'linux-headers-*-cloud-amd64')
sed -i "s|/usr/src/|$headers/usr/src/|" "$build/Makefile"
cp "$here/lab/labfault.c" "$work/module/"
echo "obj-m := labfault.o" >"$work/module/Makefile"
make -s -C "$build" M="$work/module" CC=gcc modules >"$work/module.log" 2>&1 || { cat "$work/module.log" >&2; die "labfault.c did not compile"; }
strip -g "$work/module/labfault.ko"

# The initrd of the small guest with another first process, the lab's own things, and without the witness.
mkdir "$work/initrd"
(cd "$work/initrd" && gzip -dc "$guest/initrd.gz" | cpio --quiet -idm --no-preserve-owner)
rm -f "$work/initrd/bin/witness"
mkdir -p "$work/initrd/root" "$work/initrd/lab"
install -m 755 "$here/lab/initrd" "$work/initrd/init"
install -m 755 "$here/lab/init" "$here/lab/shell" "$here/lab/service" "$work/initrd/lab/"
cp "$here/lab/commands" "$here/lab/nginx.conf" "$work/module/labfault.ko" "$work/initrd/lab/"
gcc -O2 -Wall -Wextra -static -pthread -s -o "$work/initrd/lab/tool" "$here"/lab/{main,server,memory,process,text}.c
(cd "$work/initrd" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -9n >"$work/initrd.gz"

build_root() {
  tree=$work/tree
  mkdir "$tree"
  for deb in "$out"/debs/*.deb; do dpkg-deb -x "$deb" "$tree"; done
  rm -rf "$tree/usr/share/doc" "$tree/usr/share/man" "$tree/usr/share/locale" "$tree/usr/lib/x86_64-linux-gnu/gconv"
  mkdir -p "$tree"/{dev,proc,sys,run,tmp,sbin,data,root,lab,www}
  cp "$work/initrd/bin/busybox" "$tree/bin/busybox"
  # Of busybox what the packages don't have.
  for applet in $("$tree/bin/busybox" --list); do
    for folder in bin sbin usr/bin usr/sbin; do [ ! -e "$tree/$folder/$applet" ] || continue 2; done
    ln -s busybox "$tree/bin/$applet"
  done
  ln -sf /bin/busybox "$tree/bin/sh"
  printf 'root:x:0:0:root:/data:/bin/sh\n' >"$tree/etc/passwd"
  printf 'root:x:0:\n' >"$tree/etc/group"
  ln -sf python3.11 "$tree/usr/bin/python3"
  # Pages of text that compresses, and files that don't.
  for kib in 1 8 64 512; do head -c $((kib * 750)) "$tree/usr/bin/stress-ng" | base64 >"$tree/www/page-$kib"; done
  cat "$tree"/usr/bin/{stress-ng,fio,python3.11,curl} | gzip -1 >"$tree/www/large"

  # The guest's own loader must find all that its programs are linked with in its own folders.
  libraries=$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu/ceph
  loader=$(readlink -f "$tree/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
  [ -f "$loader" ] || die "the packages have no loader of programs; remove $out/debs and try again"
  for program in usr/bin/{stress-ng,fio,sqlite3,curl,iperf3,xz,python3.11} usr/sbin/nginx bin/tar usr/lib/gcc/x86_64-linux-gnu/12/cc1; do
    missing=$("$loader" --library-path "$libraries" --list "$tree/$program" | grep -v "$tree" | grep '=>' || true)
    [ -z "$missing" ] || die "$program needs libraries that were not fetched: $missing"
  done

  data=$work/data
  mkdir -p "$data/src"
  cp "$here/lab/compile.mk" "$data/src/Makefile"
  for header in "$tree"/usr/include/stb/*.h; do
    name=$(basename "$header" .h)
    case $name in
      stb_image | stb_image_write | stb_image_resize | stb_truetype | stb_rect_pack | stb_perlin | stb_sprintf | stb_dxt | stb_ds | stb_herringbone_wang_tile)
        echo "#define $(tr a-z A-Z <<<"$name")_IMPLEMENTATION" >"$data/src/$name.c"
        echo "#include \"$name.h\"" >>"$data/src/$name.c" ;;
    esac
  done

  image() { # NAME MIB FOLDER LABEL OPTION...
    truncate -s "$2M" "$work/$1"
    # Whole from the start: what the kernel would do later in the background would be a load that nobody asked for.
    mkfs.ext4 -q -F -L "$4" -m 0 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 "${@:5}" -d "$3" "$work/$1"
  }
  image root.img $(($(du -sm "$tree" | cut -f1) * 5 / 4 + 32)) "$tree" root -O ^has_journal
  image data.img "$data_mib" "$data" data
  mv "$work/root.img" "$work/data.img" "$out/"
  echo "$root_inputs" >"$out/root-inputs"
}

if [ "$(cat "$out/root-inputs" 2>/dev/null)" != "$root_inputs" ] || [ ! -f "$out/root.img" ] || [ ! -f "$out/data.img" ]; then build_root; fi

cp "$guest/vmlinuz" "$work/vmlinuz"
cp "$here/lab/cmdline" "$work/cmdline"
# Whoever starts a guest meanwhile sees the old files or the new ones.
(cd "$work" && mv vmlinuz initrd.gz cmdline "$out/")
echo "$inputs" >"$out/inputs"
echo "built $out/root.img and $out/initrd.gz"
