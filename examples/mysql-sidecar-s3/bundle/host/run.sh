# What maintenance-backup.sh and sidecar-backup.sh share: settings, log, lock, the beginning and the end of a run.
#
# The script that sources this has set NAME, TOOL, LOG_FILE and the shell's options, and sets STAGING before a run begins.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables are the scripts', or assigned by sourcing the configuration

readonly CONFIG=${TRACKER_BACKUP_CONFIG:-/etc/tracker-backup.conf}
readonly STATE_DIR=${TRACKER_BACKUP_STATE_DIR:-/var/lib/tracker-backup}
readonly HOLD=$STATE_DIR/hold RESTORE=$STATE_DIR/restore.json
readonly LOCK_SECONDS=${TRACKER_BACKUP_LOCK_SECONDS:-10}
readonly DOCKER_SECONDS=${TRACKER_BACKUP_DOCKER_SECONDS:-60}    # for one call that should answer at once
readonly PREFLIGHT_SECONDS=${TRACKER_BACKUP_PREFLIGHT_SECONDS:-300}
readonly WORK_SECONDS=43200             # for what runs outside the window: an online capture, compressing
readonly SETTINGS=(ENVIRONMENT DEPLOY_DIR DESTINATION STRATEGY QUIESCE STOP_TIMEOUT_SECONDS WINDOW_TIMEOUT_SECONDS
    SCHEDULE LONGEST_INTERVAL_SECONDS CALENDAR IMAGE IMAGE_SOURCE)

DRY_RUN=no
RUN='' STARTED='' WORK=''               # this run's id, start, directory in staging
RECORDED=yes                            # 'no' from when the destination is known to be ours until a run manifest is written
WINDOW_SECONDS=0
REASON='' WARNINGS=() TEE='' CHILD=''

log() { printf '%(%FT%TZ)T %s[%d]: %s\n' -1 "$NAME" "$$" "$*" >&2 || true; }

warn() {
    log "WARNING: $*"
    WARNINGS+=("$*")
}

# The reason is logged once, when the run ends.
die() {
    REASON=${*:2}
    exit "$1"
}

microseconds() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }

seconds_since() {
    local elapsed=$((($(microseconds) - $1) / 1000))
    printf '%d.%03d' "$((elapsed / 1000))" "$((elapsed % 1000))"
}

# limited SECONDS COMMAND...: nothing that can hang is without a time limit, nor inherits the lock, in a subshell either:
# a free lock means a dead run. In a process group of its own, so that a Ctrl-C does not end it half-way.
limited() {
    [[ $BASHPID == "$$" ]] || exec 9>&-
    timeout --kill-after=5 "$@" 9>&-
}

# The same, for long ones: a signal is acted on at once, not when the call is over.
limited_wait() {
    limited_start "$@"
    wait "$CHILD"
}

# CHILD is what has been started.
limited_start() {
    timeout --kill-after=5 "$@" </dev/null 9>&- &
    CHILD=$!
}

tool() { limited "$DOCKER_SECONDS" "$TOOL" "$@"; }

# usage SCRIPT: the comment at its top.
usage() { sed -n '2,/^# shellcheck/{/^# shellcheck/!{s/^# \{0,1\}//;p}}' "$1"; }

load_settings() {
    local key
    unset "${SETTINGS[@]}"
    [[ -r $CONFIG ]] || die 2 "cannot read $CONFIG; install the bundle again"
    # shellcheck source=/dev/null  # rendered, root's own, every value in single quotes
    source "$CONFIG"
    for key in "${SETTINGS[@]}"; do [[ -n ${!key-} ]] || die 2 "$CONFIG: $key is missing or empty"; done
}

# One log stream: under cron both streams are the log already; by hand they go there as well as to the terminal.
open_log() {
    [[ -e $LOG_FILE ]] || install -m 0640 /dev/null "$LOG_FILE"
    if [[ ! /proc/self/fd/2 -ef $LOG_FILE ]]; then
        exec > >(trap '' HUP INT TERM PIPE; exec tee --append --output-error=warn -- "$LOG_FILE") 2>&1
        TEE=$!
    fi
}

# A trap can run inside a redirection, whose saved descriptor holds the pipe to tee as well.
close_log() {
    local descriptor
    [[ -n $TEE ]] || return 0
    exec >/dev/null 2>&1
    for descriptor in /proc/self/fd/*; do
        descriptor=${descriptor##*/}
        ((descriptor <= 2)) || exec {descriptor}>&-
    done
    timeout 5 tail --pid="$TEE" --sleep-interval=0.1 --follow /dev/null || true
}

# Of the lock that descriptor 9 has open.
wait_for_lock() {
    flock --wait "$LOCK_SECONDS" 9 || die 75 "another run holds $STATE_DIR/lock; nothing was done"
    [[ /proc/self/fd/9 -ef $STATE_DIR/lock ]] || die 2 "uninstalled while waiting for the lock; nothing was done"
}

trap_signals() {
    trap 'REASON=${REASON:-"unexpected failure at line $LINENO"}' ERR
    trap 'REASON="ended by a signal"; exit 129' HUP
    trap 'REASON="ended by a signal"; exit 130' INT
    trap 'REASON="ended by a signal"; exit 143' TERM
}

# check WHAT: by the tool; what it finds wrong is the reason, what it finds odd a warning.
check() {
    local message line status=0
    message=$(tool check "$1" 2>&1) || status=$?
    ((status != 124 && status != 137)) || die 1 "checking the $1 was not over after $DOCKER_SECONDS s: it, or Docker, does not answer"
    ((status == 0)) || die "$((status == 2 ? 2 : 1))" "${message#*error: }"
    while IFS= read -r line; do [[ -z $line ]] || warn "${line#warning: }"; done <<<"$message"
}

begin_run() {
    local taken
    check destination
    while true; do
        printf -v RUN '%(%Y%m%d_%H%M%S)T' -1
        taken=("$DESTINATION"/*/*"$RUN"*)
        ((${#taken[@]} > 0)) || break
        sleep 0.2
    done
    printf -v STARTED '%(%FT%TZ)T' -1
    WORK=$STAGING/$RUN
    RECORDED=$DRY_RUN WINDOW_SECONDS=0
    log "run $RUN begins: $STRATEGY, quiesce $QUIESCE"
}

# Under the lock, what carries a run's name and is not this run's belongs to a dead one. Only partial files: a file with
# its final name is never removed here.
remove_leftover_files() {
    local leftover
    for leftover in "$STAGING"/[0-9]*_[0-9]* "$DESTINATION"/{sqlite,mysql,config,runs}/*[0-9]_[0-9]*.partial; do
        warn "removing what a dead run left: $leftover"
        rm -rf -- "$leftover"
    done
}

# step_failed STEP STATUS LIMIT: ends the run with the reason that backup.sh has left in staging.
step_failed() {
    (($2 != 124 && $2 != 137)) || die 1 "the $1 step was not over after its time limit of $3 s, or its container was killed"
    [[ -s $WORK/reason ]] || die 1 "the $1 step failed with exit code $2; its message is in the log"
    die "$(($2 == 2 ? 2 : 1))" "$(<"$WORK/reason")"
}

# record RESULT CODE: the run manifest; written last, it is what makes this a backup.
record() {
    {
        printf '%s\n' "id=$RUN" "started=$STARTED" "result=$1" "exit_code=$2" "reason=${REASON//$'\n'/ }" "quiesce=$QUIESCE" \
            "window_seconds=$WINDOW_SECONDS"
        ((${#WARNINGS[@]} == 0)) || printf 'warning=%s\n' "${WARNINGS[@]}"
    } | tool record "$WORK"
}

record_success() {
    record success 0 || die 1 'the run manifest could not be written'
    RECORDED=yes
    tool prune || warn 'old backups could not be removed; see the line above'
}

# end_run CODE: a failed run publishes nothing and says why.
end_run() {
    local code=$1
    if [[ $RECORDED == no && $code != 3 ]]; then
        # The manifest first: it may be there already, and then none must say success of files that are gone.
        rm -f -- "$DESTINATION/runs/$RUN.json" "$DESTINATION"/{sqlite,mysql,config}/*_"$RUN".*
        record failed "$code"
    fi
    [[ -z $WORK ]] || rm -rf -- "$WORK"
    case $code in
        0) [[ -z $RUN || $DRY_RUN == yes ]] || log "run $RUN succeeded" ;;
        3) log "WARNING: $REASON" ;;
        *) log "ERROR: ${RUN:+run $RUN failed, }exit code $code: ${REASON:-unexpected}" ;;
    esac
    close_log
    exit "$code"
}
