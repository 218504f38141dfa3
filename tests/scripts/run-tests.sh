#!/usr/bin/env bash
# Runs all tests of the workspace and closes with the runner's own result lines, so that the end of a long output
# says it all. Options are passed to `cargo test`. The test binaries run one after the other: several of them start
# real virtual machines, which would slow each other down.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# `cargo test` of everything builds `epochgate`, too. Without being told, the end-to-end tests would have it built once more, as it is without the
# features that other packages ask for.
if [ $# = 0 ] && cargo test --workspace --no-run; then
  export EPOCHGATE_BIN=${EPOCHGATE_BIN:-$(realpath "${CARGO_TARGET_DIR:-target}")/debug/epochgate}
fi

code=0
cargo test --workspace --no-fail-fast "$@" 2>&1 </dev/null | tee "$log" || code=$?

echo
echo "results:"
# Each "Running" or "Doc-tests" line names the binary that the next result line belongs to.
awk '
  /^ *(Running|Doc-tests) / { name = $1 == "Doc-tests" ? "doc-tests of " $2 : $0; sub(/^ *Running /, "", name) }
  /^test result:/           { sub(/^test result: /, ""); print "  " name ": " $0 }
  /^test .* FAILED$/        { failed[++failures] = $2 }
  END { for (i = 1; i <= failures; i++) print "  FAILED " failed[i] }
' "$log"
if [ "$code" = 0 ]; then echo "all tests passed"; else echo "tests failed (cargo test ended with $code)"; fi
exit "$code"
