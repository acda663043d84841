# What scripts/check, scripts/test and scripts/demo share: where tools are, phases with their
# durations, what was skipped.
# shellcheck shell=bash
set -Eeuo pipefail
shopt -s inherit_errexit nullglob

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# A checkout may be a link or stand elsewhere tomorrow: everything below works from its root.
cd -- "$ROOT"
export PATH=$ROOT/target/venv/bin:$ROOT/target/tools/usr/bin:$PATH
export ANSIBLE_HOME=$ROOT/target/ansible PYTHONDONTWRITEBYTECODE=1

FAILED=() SKIPPED=()

say() { printf '\n== %s\n' "$*"; }

# phase NAME COMMAND...: runs it, says how long it took. A failure is remembered, and the next phase
# runs all the same.
phase() {
    local name=$1 started=$SECONDS result=ok code
    shift
    say "$name"
    # In a shell of its own, so that `set -e` is on in functions too.
    set +e
    (
        set -e
        "$@"
    )
    code=$?
    set -e
    ((code == 0)) || { result=FAILED; FAILED+=("$name"); }
    printf -- '-- %s: %s (%d s)\n' "$name" "$result" "$((SECONDS - started))"
}

# skip NAME REASON: what this machine cannot run; in CI that is a failure.
skip() {
    say "$1: SKIPPED, $2"
    SKIPPED+=("$1 ($2)")
    [[ ${CI:-} != true ]] || FAILED+=("$1 (skipped: $2)")
}

# conclude: the last words; its exit code is the script's.
conclude() {
    local entry
    say "done in $SECONDS s"
    for entry in "${SKIPPED[@]}"; do printf 'SKIPPED: %s\n' "$entry"; done
    for entry in "${FAILED[@]}"; do printf 'FAILED: %s\n' "$entry"; done
    ((${#FAILED[@]} == 0))
}
