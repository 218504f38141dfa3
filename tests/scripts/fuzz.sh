#!/usr/bin/env bash
# Runs each fuzz target for so many seconds (first argument, 60), or only those named after it. Needs cargo-fuzz; it builds with the
# installed toolchain, so no nightly. What is found in passing is kept in fuzz/corpus, which is not checked in. An input that fails is
# shown and written to fuzz/libfuzzer/artifacts: copy it to fuzz/failed/TARGET, where `cargo test -p fuzz-targets` runs it from then on.
#
# An input fails if it panics, takes more than a second (FUZZ_TIMEOUT), or allocates more than 64 MiB at once (FUZZ_MALLOC_MIB); the
# whole process may have 512 MiB (FUZZ_RSS_MIB).
set -euo pipefail

die() { echo "tests/scripts/fuzz.sh: $*" >&2; exit 1; }

seconds=${1:-60}
shift || true
case $seconds in "" | *[!0-9]*) die "'$seconds' is no number of seconds" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../../fuzz"
cargo fuzz --version >/dev/null 2>&1 || die "cargo-fuzz is missing; install it with \`cargo install cargo-fuzz --locked\`"

# libFuzzer's hooks are options of the compiler that are not stable. The code has next to no unsafe blocks, so an address
# sanitizer would cost more runs than it could find faults.
export RUSTC_BOOTSTRAP=1
fuzz() { cargo fuzz "$1" --fuzz-dir libfuzzer --sanitizer none "${@:2}"; }

[ $# -gt 0 ] || set -- negotiation transmission session session_threads control checkpoint log configuration
fuzz build
code=0
for target in "$@"; do
  inputs=${target%_threads}
  [ -d "seeds/$inputs" ] || die "there is no target $target"
  mkdir -p "corpus/$inputs" "failed/$inputs"
  echo "== $target, $seconds s"
  log=$(mktemp)
  fuzz run "$target" "corpus/$inputs" "seeds/$inputs" "failed/$inputs" -- \
    -max_total_time="$seconds" -max_len=20000 -timeout="${FUZZ_TIMEOUT:-1}" \
    -malloc_limit_mb="${FUZZ_MALLOC_MIB:-64}" -rss_limit_mb="${FUZZ_RSS_MIB:-512}" -print_final_stats=1 >"$log" 2>&1 || code=1
  grep -E '^(stat::|SUMMARY)|DONE|panicked|left:|right:|Test unit written' "$log" || tail -n 20 "$log"
  rm -f "$log"
done
[ "$code" = 0 ] || echo "a target failed; see fuzz/libfuzzer/artifacts" >&2
exit "$code"
