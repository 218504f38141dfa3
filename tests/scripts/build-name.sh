#!/usr/bin/env bash
# Names what would be built now, for the ledger of the fault matrix: the commit, with `-changed` if the source is not that of the
# commit (documents don't count); `unknown` outside of git.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=$(git rev-parse --short=12 HEAD 2>/dev/null) || { echo unknown; exit 0; }
git diff --quiet HEAD -- . ':!docs' || name+=-changed
echo "$name"
