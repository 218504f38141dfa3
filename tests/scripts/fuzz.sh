#!/usr/bin/env bash
# Runs each fuzz target, or only those that are named: tests/scripts/fuzz.sh [--runs N] [SECONDS] [TARGET...]
# A target ends after N executions or after so many seconds, whichever comes first; without either it runs for 60 seconds.
#
# Needs cargo-fuzz; it builds with the installed toolchain, so no nightly. What is found in passing is kept in fuzz/corpus; counts go to
# fuzz/results/counts.tsv, with a hash of the program, as only executions of the same program add up; what libFuzzer says goes to
# fuzz/results/TARGET.log. None of that is checked in. An input that fails is shown and written to fuzz/libfuzzer/artifacts: copy it to
# fuzz/failed/TARGET, where `cargo test -p fuzz-targets` runs it from then on. Ctrl-C ends the target that runs, with its counts, and
# all after it.
#
# An input fails if it panics, keeps its thread busy for more than a second, is not done after 10 seconds (FUZZ_TIMEOUT) however busy
# the machine is, or if the process holds more than 64 MiB (fuzz/src/bounds.rs); with what libFuzzer keeps it may have 512 MiB
# (FUZZ_RSS_MIB). FUZZ_CORPUS is a directory with more inputs to begin with, in a directory for each target. FUZZ_PROGRAMS is one
# with programs that are built already.
set -euo pipefail

die() { echo "tests/scripts/fuzz.sh: $*" >&2; exit 1; }
is_number() { case $1 in "" | *[!0-9]*) return 1 ;; esac; }

runs=
if [ "${1:-}" = --runs ]; then
  is_number "${2:-}" || die "'${2:-}' is no number of executions"
  runs=$2
  shift 2
fi
seconds=
if is_number "${1:-}"; then
  seconds=$1
  shift
fi
[ -n "$runs$seconds" ] || seconds=60
cd "$(dirname "${BASH_SOURCE[0]}")/../../fuzz"

[ $# -gt 0 ] || set -- control checkpoint packing backup recording model device_head configuration transmission negotiation session log history session_threads
for target in "$@"; do
  [ -f "libfuzzer/fuzz_targets/$target.rs" ] || die "there is no target '$target'"
done

programs=${FUZZ_PROGRAMS:-}
if [ -z "$programs" ]; then
  cargo fuzz --version >/dev/null 2>&1 || die "cargo-fuzz is missing; install it with \`cargo install cargo-fuzz --locked\`"
  # libFuzzer's hooks are options of the compiler that are not stable. The code has next to no unsafe blocks, so an address
  # sanitizer would cost more runs than it could find faults.
  # Most inputs are scripts, of which no byte is compared with anything: to trace comparisons would take a quarter of the time for nothing.
  RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir libfuzzer --sanitizer none --no-trace-compares
  host=$(rustc -vV | sed -n 's/^host: //p')
  programs=${CARGO_TARGET_DIR:-libfuzzer/target}/$host/release
fi

# Inputs that are longer show nothing new. Of the handshake one may have an option that is too long for it.
longest() {
  case $1 in
    log | history) echo 64 ;;
    packing) echo 600 ;;
    session*) echo 2000 ;;
    negotiation) echo 20500 ;;
    *) echo 4096 ;;
  esac
}

# A number that libFuzzer prints at the end.
stat() { sed -n "s/^stat::$2: *//p" "$1" | tail -n 1; }

fuzzer=
stopped=
stop() {
  stopped=1
  [ -z "$fuzzer" ] || kill -USR1 "$fuzzer" 2>/dev/null || true
}
trap stop INT TERM

mkdir -p results
code=0
for target in "$@"; do
  [ -z "$stopped" ] || break
  inputs=${target%_threads}
  mkdir -p "corpus/$inputs" "failed/$inputs" "libfuzzer/artifacts/$target"
  folders=("corpus/$inputs" "seeds/$inputs" "failed/$inputs")
  [ ! -d "${FUZZ_CORPUS:-/nonexistent}/$inputs" ] || folders+=("$FUZZ_CORPUS/$inputs")
  echo "== $target: ${runs:+$runs executions}${runs:+${seconds:+ or }}${seconds:+$seconds s}"
  log=results/$target.log
  program=$programs/$target
  hash=$(sha256sum "$program" | cut -c 1-12)
  start=$SECONDS
  result=good
  # Without entropic schedules, which take an eighth of the time of `log`.
  # In the background, so that a signal reaches this script at once.
  "$program" "${folders[@]}" -max_len="$(longest "$target")" -timeout="${FUZZ_TIMEOUT:-10}" \
    -rss_limit_mb="${FUZZ_RSS_MIB:-512}" -reload=0 -entropic=0 -print_final_stats=1 -artifact_prefix="libfuzzer/artifacts/$target/" \
    ${runs:+-runs="$runs"} ${seconds:+-max_total_time="$seconds"} >"$log" 2>&1 &
  fuzzer=$!
  # A signal ends the wait, not yet the fuzzer, which says its numbers before it ends.
  status=0
  wait "$fuzzer" || status=$?
  while kill -0 "$fuzzer" 2>/dev/null; do
    status=0
    wait "$fuzzer" || status=$?
  done
  fuzzer=
  [ "$status" = 0 ] || [ -n "$stopped" ] || result=failed
  ! grep -aq '^SUMMARY' "$log" || result=failed
  took=$((SECONDS - start))
  executions=$(stat "$log" number_of_executed_units)
  slowest=$(sed -n 's/^slowest input so far: //p' "$log" | tail -n 1)
  wall=$(stat "$log" slowest_unit_time_sec)
  if [ "$result" = failed ]; then
    code=1
    grep -aE '^SUMMARY|panicked|left:|right:|memory allocation|Test unit written' "$log" || tail -n 20 "$log"
  fi
  counts=results/counts.tsv
  [ -s "$counts" ] || printf 'ended\ttarget\tprogram\texecutions\tseconds\tslowest\tresult\n' >"$counts"
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%FT%TZ)" "$target" "$hash" "${executions:-0}" "$took" "${slowest:-below 1 ms}" "$result" >>"$counts"
  all=$(awk -F '\t' -v target="$target" -v hash="$hash" '$2 == target && $3 == hash { all += $4 } END { printf "%.0f", all }' "$counts")
  echo "$target: ${executions:-0} executions in $took s, slowest input ${slowest:-below 1 ms} of CPU time and ${wall:-?} s in all: $result;" \
    "with this program $all so far"
done
[ "$code" = 0 ] || echo "a target failed; see fuzz/results and fuzz/libfuzzer/artifacts" >&2
exit "$code"
