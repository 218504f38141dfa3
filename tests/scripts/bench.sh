#!/usr/bin/env bash
# All benchmarks, one after the other; writes docs/results.md. RUNS is the number of failovers of the main bench
# (100), OTHERS that of the two variants (20). Quit other work on the machine first.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs=${RUNS:-100} others=${OTHERS:-20}
epochgate=${CARGO_TARGET_DIR:-target}/release/epochgate
qemu10=target/qemu10/qemu-system-x86_64
out=$(mktemp)
trap 'rm -f "$out"' EXIT

code=0
# A run that was not good is in the figures; the others go on.
failover() { "$epochgate" bench failover --markdown --keep "$@" >>"$out" || code=1; }

cat >"$out" <<EOF
# Results

Written by \`make bench\` (\`RUNS=$runs OTHERS=$others\`). Half of the failovers kill QEMU and coordinator at a random
instant, the other half at each failpoint between two steps of a commit in turn; every run boots a new guest, whose
witness then judges every block of both disks and its own memory. Absolute times are those of one machine, with all
parts on it, $(nproc) cores, TCG (no KVM), Linux $(uname -r | cut -d- -f1); they are for orientation. The kill is a
SIGKILL, so the connection closes and the standby need not wait for silence.

EOF
failover --runs "$runs"
[ -x "$qemu10" ] || tests/scripts/fetch-qemu10.sh
failover --runs "$others" --qemu "$qemu10"
failover --runs "$others" --tracker hash --interval 500
cp "$out" docs/results.md
echo "written: docs/results.md"
exit "$code"
