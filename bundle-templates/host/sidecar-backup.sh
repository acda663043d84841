#!/usr/bin/env bash
# Backs up this host's Torrust Tracker online, inside the sidecar, whose cron runs it. By hand, run
# `backup.sh now` in the sidecar or `tracker-backup run` on the host. It never touches the tracker.
#
#   sidecar-backup.sh [--dry-run] [--help]
#     --dry-run   check everything, say what would be done, publish nothing
#
# While the file /var/lib/tracker-backup/hold is there, nothing is done.
# Exit codes: 0 success; 1 the backup failed; 2 configuration error; 3 held; 75 another run holds
# the lock; 129, 130, 143 ended by a signal.
# shellcheck disable=SC2154  # the settings are assigned by sourcing the configuration
set -Eeuo pipefail
shopt -s inherit_errexit nullglob
umask 077
export LC_ALL=C TZ=UTC0

readonly NAME=sidecar-backup
readonly LIBRARY=${TRACKER_BACKUP_LIBRARY:-/usr/local/lib/tracker-backup}
readonly LOG_FILE=${TRACKER_BACKUP_LOG:-/proc/1/fd/1}           # the container's standard output
readonly TOOL=${TRACKER_BACKUP_TOOL:-$LIBRARY/__main__.py}
readonly STEPS=${TRACKER_BACKUP_STEPS:-/usr/local/bin/backup.sh}
readonly STAGING=${BACKUP_STAGING:-/staging}
# Cron does not pass the container's environment to its jobs.
export TRACKER_BACKUP_DEPLOY_DIR=${TRACKER_BACKUP_DEPLOY_DIR:-/data}
export TRACKER_BACKUP_DESTINATION=${TRACKER_BACKUP_DESTINATION:-/backups}
# shellcheck source-path=SCRIPTDIR source=run.sh
source "$LIBRARY/run.sh"

parse_arguments() {
    while (($# > 0)); do
        case $1 in
            --dry-run) DRY_RUN=yes ;;
            -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;;
            *) printf 'sidecar-backup.sh: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
        esac
        shift
    done
}

load_config() {
    load_settings
    DESTINATION=$TRACKER_BACKUP_DESTINATION
    [[ $STRATEGY == sidecar ]] || die 2 "$CONFIG: STRATEGY='$STRATEGY'; this script runs sidecar"
    [[ $QUIESCE == none ]] || die 2 "$CONFIG: QUIESCE='$QUIESCE'; a sidecar knows none alone"
}

# Opens the lock for reading, because the host's state directory is mounted read-only.
take_lock() {
    [[ -r $STATE_DIR/lock ]] || die 2 "$STATE_DIR/lock is not there; install the bundle again"
    exec 9<"$STATE_DIR/lock"
    wait_for_lock
}

# step SECONDS STEP ARGUMENT...: one step of backup.sh, which leaves in staging why it failed.
step() {
    local status=0
    limited_wait "$1" "$STEPS" "$2" "$RUN" "${@:3}" || status=$?
    ((status == 0)) || step_failed "$2" "$status" "$1"
}

on_exit() {
    local code=$1
    trap '' HUP INT TERM
    trap - ERR EXIT
    set +e
    [[ -z $CHILD ]] || { kill "$CHILD"; wait "$CHILD"; } 2>/dev/null
    end_run "$code"
}

run() {
    [[ ! -e $RESTORE ]] \
        || die 1 "a restore died and left $RESTORE; the host rolls it back within a minute"
    load_config
    begin_run
    remove_leftover_files
    check deployment
    make_work_directory
    tool expect "$WORK"
    step "$PREFLIGHT_SECONDS" preflight online
    if [[ $DRY_RUN == yes ]]; then
        log "dry run: everything is ready; would now capture online, and publish to $DESTINATION"
        return
    fi
    step "$WORK_SECONDS" capture online
    step "$WORK_SECONDS" finish
    record_success
}

main() {
    parse_arguments "$@"
    open_log
    trap 'on_exit "$?"' EXIT
    trap_signals
    [[ ! -e $HOLD ]] || die 3 "held: nothing is done while $HOLD is there"
    take_lock
    run
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
