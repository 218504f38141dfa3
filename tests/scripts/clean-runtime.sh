#!/usr/bin/env bash
# Removes the working files and folders that demo, tests and benchmarks leave behind when they are killed: epochgate-* in
# the temporary directory and in /dev/shm. Leaves alone what a running process still uses, and names it.
set -euo pipefail
shopt -s nullglob

# libfaketime's, of processes that are gone.
for file in /dev/shm/faketime_shm_* /dev/shm/sem.faketime_sem_*; do
  [ -e "/proc/${file##*_}" ] || { [ -O "$file" ] && rm -f -- "$file"; }
done

for dir in "${TMPDIR:-/tmp}"/epochgate-* /dev/shm/epochgate-*; do
  [ -O "$dir" ] || continue
  # What a gateway that was stopped or killed still held: its next start goes on with it.
  case $dir in *.held) echo "kept $dir: held epochs of a group; remove it if the group is gone"; continue ;; esac
  # The path goes in by standard input: as an argument it would make grep find itself.
  users=$(grep -lsF -f - /proc/[0-9]*/{maps,cmdline} <<<"$dir" | awk -F/ '{print $3}' | sort -un | tr '\n' ' ' || true)
  if [ -n "$users" ]; then
    echo "kept $dir: in use by process $users"
  else
    rm -rf -- "$dir"
    echo "removed $dir"
  fi
done
