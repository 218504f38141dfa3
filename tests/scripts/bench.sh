#!/usr/bin/env bash
# The benchmarks, one after the other; writes docs/results.md, part by part. PARTS chooses (failover checkpoint overhead database nbd commit memory history, and
# faults, which is only done when it is asked for; what is not chosen stays as it is). RUNS is the number of failovers of the main bench (100), OTHERS that of its two variants
# (20), DATABASE that of the database bench (50; needs root, as does overhead), REPEATS how often the others repeat (3). CHECKPOINT, OVERHEAD,
# NBD, COMMIT, MEMORY and HISTORY are further options of the bench of that name, such as NBD="--seconds 1 --size 512M". DISKS is where disks and logs lie (the directory for temporary files):
# 10 GiB of storage that is worth measuring. Quit other work on the machine first.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
parts=${PARTS:-failover checkpoint overhead database nbd commit memory history}
runs=${RUNS:-100} others=${OTHERS:-20} repeats=${REPEATS:-3} disks=${DISKS:-${TMPDIR:-/tmp}}
epochgate=${CARGO_TARGET_DIR:-target}/release/epochgate
qemu10=target/qemu10/qemu-system-x86_64
results=docs/results.md
out=$(mktemp)
trap 'rm -f "$out"' EXIT

for part in $parts; do
  case $part in
    failover | checkpoint | overhead | database | faults | nbd | commit | memory | history) ;;
    *) echo "tests/scripts/bench.sh: there is no part '$part'; there are failover checkpoint overhead database faults nbd commit memory history" >&2; exit 2 ;;
  esac
done

code=0
# A run that was not good is in the figures; the others go on.
bench() { "$epochgate" bench "$@" || code=1; }

failover() {
  cat <<EOF
Half of the failovers kill QEMU and coordinator at a random instant, the other half at each failpoint between two steps of
a commit in turn; every run boots a new guest, whose witness then judges every block of both disks and its own memory.
\`RUNS=$runs OTHERS=$others\`, $(nproc) cores, TCG (no KVM), Linux $(uname -r | cut -d- -f1). The kill is a SIGKILL, so the
connection closes and the standby need not wait for silence.

EOF
  bench failover --markdown --keep --runs "$runs" --svg docs/results-failover.svg
  echo "![The times as bars](results-failover.svg)"
  echo
  [ -x "$qemu10" ] || tests/scripts/fetch-qemu10.sh >&2
  bench failover --markdown --keep --runs "$others" --qemu "$qemu10"
  bench failover --markdown --keep --runs "$others" --tracker hash --interval 500
}

# RAM and rates in turn, as every pair of them would take an hour.
checkpoint() {
  # shellcheck disable=SC2086
  bench checkpoint --repeats "$repeats" --rates 10,20,40,100 --markdown --svg docs/results-checkpoint.svg ${CHECKPOINT:-}
  echo "![The pauses as bars](results-checkpoint.svg)"
  echo
  # shellcheck disable=SC2086
  bench checkpoint --repeats "$repeats" --ram 256M,512M,1G,2G,4G --peers --no-max-rate --markdown ${CHECKPOINT:-}
}

overhead() {
  # shellcheck disable=SC2086
  bench overhead --repeats "$repeats" --markdown --svg docs/results-overhead.svg ${OVERHEAD:-}
  echo "![The ratios as bars](results-overhead.svg)"
  echo
}

# Once as it is meant to be, once with more connections, and once to show that losses would be found; that one ends with exit code 1.
database() {
  bench database --markdown --keep --failovers "${DATABASE:-100}" --switchovers 10
  bench database --markdown --keep --failovers 5 --connections 32
  "$epochgate" bench database --markdown --failovers 3 --output pass --rhythm fixed --interval 400 --late || [ $? = 1 ]
}

# All runs of the matrix so far, by the ledger, and FAULTS more.
faults() {
  printf '## The fault matrix\n\n'
  printf 'What the cells are and what each run asserts: [testing.md](testing.md#the-fault-matrix). `make faults RUNS=n` adds runs to [faults.tsv](faults.tsv), from which\nthis table is made (`make bench PARTS=faults`).\n\n'
  bench faults --markdown --keep --runs "${FAULTS:-0}" --parallel 3 --results "${CARGO_TARGET_DIR:-target}/faults.jsonl" \
    --ledger docs/faults.tsv --build "$(tests/scripts/build-name.sh)"
}

nbd() {
  # shellcheck disable=SC2086
  bench nbd --repeats "$repeats" --dir "$disks" --markdown --svg docs/results-nbd.svg ${NBD:-}
  echo "![The medians as bars](results-nbd.svg)"
  echo
}

# shellcheck disable=SC2086
commit() { bench commit --repeats "$repeats" --dir "$disks" --markdown ${COMMIT:-}; }

# shellcheck disable=SC2086
memory() { bench memory --dir "$disks" --markdown ${MEMORY:-}; }

# In memory, as a million commits would take an hour elsewhere.
history() {
  printf '## History\n\n'
  # shellcheck disable=SC2086
  bench history --markdown ${HISTORY:-}
}

# A part that was chosen is run; another is carried over.
part() {
  if [[ " $parts " == *" $1 "* ]]; then
    printf '<!-- part %s -->\n' "$1"
    "$1"
    printf '<!-- end %s -->\n' "$1"
  else
    sed -n "/^<!-- part $1 -->/,/^<!-- end $1 -->/p" "$results"
  fi >>"$out"
}

sed '/^<!-- part /,$d' "$results" >"$out"
part failover
part checkpoint
part overhead
part database
part faults
part nbd
part commit
part memory
part history
cp "$out" "$results"
echo "written: $results"
exit "$code"
