#!/bin/bash
# Full and incremental backups of a group of disks, consistent over all of them, while the VM runs on. What is in them, and what comes
# next: docs/backup.md. Needs epochgate, qemu-utils and libnbd-bin.
#
#   backup-with-stock-tools.sh [OPTIONS] backup  GROUP DIRECTORY DISK...
#   backup-with-stock-tools.sh [OPTIONS] verify  GROUP DIRECTORY DISK...
#   backup-with-stock-tools.sh           list    DIRECTORY
#   backup-with-stock-tools.sh           restore DIRECTORY DISK PIN IMAGE
#
#   --control PATH    control socket of the gateway (/run/epochgate/gateway.sock)
#   --nbd ADDRESS     where the gateway serves its disks: unix:PATH or HOST:PORT (unix:/run/epochgate/nbd.sock)
#
# The first backup in a directory is a full one. Each later one holds what changed since the one before, which is its backing file:
#   DIRECTORY/PIN/DISK.qcow2     the disk at the pin
#   DIRECTORY/last               the pin of the newest backup; the gateway keeps it until the next is done
set -euo pipefail

control=/run/epochgate/gateway.sock
nbd=unix:/run/epochgate/nbd.sock
epochgate=${EPOCHGATE:-epochgate}
# Read at once from a disk, in bytes.
piece=$((16 << 20))

fail() {
    echo "backup-with-stock-tools.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{/^#/{s/^# \?//;p}}' "$0" >&2
    exit 2
}

uri() { # EXPORT
    case $nbd in
    unix:*) echo "nbd+unix:///$1?socket=${nbd#unix:}" ;;
    *) echo "nbd://$nbd/$1" ;;
    esac
}

pin() { # pin|unpin GROUP PIN
    "$epochgate" log "$1" "$2" "$3" --control "$control" >&2
}

# What changed on a disk between two pins, as read commands of qemu-io. Fails when the gateway does not know the older pin any more.
changed() { # GROUP/DISK OLDER NEWER
    nbdinfo --map="qemu:dirty-bitmap:pin=$2" "$(uri "$1@pin=$3")" | awk -v piece="$piece" '
        $3 == 1 {
            for (at = $1; at < $1 + $2; at += piece) {
                rest = $1 + $2 - at
                printf "read -q %.0f %.0f\n", at, rest < piece ? rest : piece
            }
        }'
}

# An image that takes what it lacks from the pinned disk is made to read all that has changed, and keeps what it has read. Then it is
# told to take the rest from the backup before.
increment() { # GROUP/DISK OLDER NEWER IMAGE BACKING
    local commands=$4.changed out
    changed "$1" "$2" "$3" > "$commands" || fail "if pin $2 is gone, begin anew in another directory"
    qemu-img create -q -f qcow2 -F raw -b "$(uri "$1@pin=$3")" "$4"
    if [[ -s $commands ]]; then
        out=$(qemu-io -f qcow2 -C "$4" < "$commands" 2>&1) || fail "$1 can't be read: $out"
        # After an error it goes on.
        [[ $out != *[Ff]ailed* && $out != *rror* ]] || fail "$1 can't be read: $out"
    fi
    rm "$commands"
    qemu-img rebase -q -u -f qcow2 -F qcow2 -b "$5" "$4"
}

backup() { # GROUP DIRECTORY DISK...
    local group=$1 dir=$2 disk
    shift 2
    mkdir -p "$dir"
    exec 9> "$dir/lock"
    flock -n 9 || fail "a backup into $dir is under way"
    older=$(cat "$dir/last" 2> /dev/null || true)
    newer=backup-$(date -u +%Y%m%dT%H%M%S.%3NZ)
    pin pin "$group" "$newer"
    # Nothing is left of a backup that fails.
    trap 'rm -rf "$dir/$newer"; pin unpin "$group" "$newer"' EXIT
    mkdir "$dir/$newer"
    for disk in "$@"; do
        if [[ -z $older ]]; then
            qemu-img convert -q -f raw -O qcow2 "$(uri "$group/$disk@pin=$newer")" "$dir/$newer/$disk.qcow2"
        elif [[ -e $dir/$older/$disk.qcow2 ]]; then
            increment "$group/$disk" "$older" "$newer" "$dir/$newer/$disk.qcow2" "../$older/$disk.qcow2"
        else
            fail "there is no backup of disk $disk in $dir/$older; begin anew in another directory"
        fi
    done
    sync -f "$dir"
    echo "$newer" > "$dir/last.new"
    mv "$dir/last.new" "$dir/last"
    sync -f "$dir"
    trap - EXIT
    if [[ -n $older ]]; then
        pin unpin "$group" "$older"
    fi
    echo "$newer"
}

# The newest backup against the disks at its pin, byte by byte.
verify() { # GROUP DIRECTORY DISK...
    local group=$1 dir=$2 last disk
    shift 2
    last=$(cat "$dir/last") || fail "there is no backup in $dir"
    for disk in "$@"; do
        qemu-img compare -f qcow2 -F raw "$dir/$last/$disk.qcow2" "$(uri "$group/$disk@pin=$last")" ||
            fail "the backup of $disk is not what the disk was"
    done
}

while [[ ${1-} == --* ]]; do
    case $1 in
    --control) control=${2:?} ;;
    --nbd) nbd=${2:?} ;;
    *) usage ;;
    esac
    shift 2
done
command=${1-}
shift || usage
case $command:$# in
backup:[0-2] | verify:[0-2]) usage ;;
backup:*) backup "$@" ;;
verify:*) verify "$@" ;;
list:1) ls -d "$1"/backup-*/ | xargs -n 1 basename ;;
restore:4) qemu-img convert -f qcow2 -O raw "$1/$3/$2.qcow2" "$4" ;;
*) usage ;;
esac
