# Shared by maintenance-backup.sh and sidecar-backup.sh: settings, log, lock, begin and end of runs.
#
# The sourcing script sets NAME, TOOL, LOG_FILE and the shell's options. It sets STAGING before a
# run begins.
# shellcheck shell=bash
# The scripts use these variables, or sourcing the configuration assigns them.
# shellcheck disable=SC2034,SC2154

readonly CONFIG=${TRACKER_BACKUP_CONFIG:-/etc/tracker-backup.conf}
readonly STATE_DIR=${TRACKER_BACKUP_STATE_DIR:-/var/lib/tracker-backup}
readonly HOLD=$STATE_DIR/hold RESTORE=$STATE_DIR/restore.json
readonly LOCK_SECONDS=${TRACKER_BACKUP_LOCK_SECONDS:-10}
# The limit of one call that should answer at once.
readonly DOCKER_SECONDS=${TRACKER_BACKUP_DOCKER_SECONDS:-60}
readonly PREFLIGHT_SECONDS=${TRACKER_BACKUP_PREFLIGHT_SECONDS:-300}
# The limit of work outside the window: an online capture, compressing.
readonly WORK_SECONDS=43200
readonly SETTINGS=(ENVIRONMENT DEPLOY_DIR DESTINATION STRATEGY QUIESCE STOP_TIMEOUT_SECONDS
    WINDOW_TIMEOUT_SECONDS SCHEDULE LONGEST_INTERVAL_SECONDS CALENDAR IMAGE IMAGE_SOURCE)
readonly ANSWER_BYTES=65536             # what the host reads of one file that a container wrote
readonly STAND_STILL_SECONDS=60         # the limit of a fault point

DRY_RUN=no
RUN='' STARTED='' WORK=''               # this run's id, start, directory in staging
ANSWERS=''                              # the same directory, through our own descriptor
# 'no' after the destination is known to be ours and until a run manifest is written.
RECORDED=yes
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

# fault_point NAME: a place at which the test suite can stop a run and kill something.
# It does something only when all of this is true:
# - TRACKER_BACKUP_STOP_AT is NAME in the environment, and
# - the directory .fault-points is there in staging.
# Then it makes .fault-points/reached and waits until .fault-points/hold is gone, at most 60 s.
# Each run stops once: a fault point does nothing when `reached` is there already.
# lib.sh and fault_points.py have the same function for the container and for Python.
fault_point() { [[ ${TRACKER_BACKUP_STOP_AT-} != "$1" ]] || stand_still; }

stand_still() {
    local directory end=$((SECONDS + STAND_STILL_SECONDS))
    # Before the settings are read, STAGING is not known.
    # shellcheck source=/dev/null
    directory=${STAGING:-$(source "$CONFIG"; printf '%s' "$DEPLOY_DIR/storage/backup-staging")}
    directory+=/.fault-points
    if [[ -d $directory ]] && mkdir -- "$directory/reached" 2>/dev/null; then
        while [[ -e $directory/hold ]] && ((SECONDS < end)); do sleep 0.02; done
    fi
}

# limited SECONDS COMMAND...: runs a command that could hang with a time limit.
# The command does not inherit the lock, because a free lock means that the run is dead.
# It has a process group of its own, so that Ctrl-C does not end it half-way.
limited() {
    [[ $BASHPID == "$$" ]] || exec 9>&- 8<&-
    timeout --kill-after=5 "$@" 9>&- 8<&-
}

# The same for long commands: the script acts on a signal at once, not after the command.
limited_wait() {
    limited_start "$@"
    wait "$CHILD"
}

# CHILD is what has been started.
limited_start() {
    timeout --kill-after=5 "$@" </dev/null 9>&- 8<&- &
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
    for key in "${SETTINGS[@]}"; do
        [[ -n ${!key-} ]] || die 2 "$CONFIG: $key is missing or empty"
    done
}

# Under cron, both streams are the log already. By hand, they go to the log and to the terminal.
open_log() {
    [[ -e $LOG_FILE ]] || install -m 0640 /dev/null "$LOG_FILE"
    if [[ ! /proc/self/fd/2 -ef $LOG_FILE ]]; then
        exec > >(trap '' HUP INT TERM PIPE
            exec tee --append --output-error=warn -- "$LOG_FILE") 2>&1
        TEE=$!
    fi
}

# A trap can run inside a redirection. Bash then has a saved descriptor that keeps tee's pipe open.
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

# Waits for the lock that descriptor 9 has open.
wait_for_lock() {
    fault_point taking-the-lock
    flock --wait "$LOCK_SECONDS" 9 || die 75 "another run holds $STATE_DIR/lock; nothing was done"
    [[ /proc/self/fd/9 -ef $STATE_DIR/lock ]] \
        || die 2 'uninstalled while waiting for the lock; nothing was done'
}

trap_signals() {
    trap 'REASON=${REASON:-"unexpected failure at line $LINENO"}' ERR
    trap 'REASON="ended by a signal"; exit 129' HUP
    trap 'REASON="ended by a signal"; exit 130' INT
    trap 'REASON="ended by a signal"; exit 143' TERM
}

# check WHAT: asks the tool. An error of the tool ends the run; each other line is a warning.
check() {
    local message line status=0
    case $1 in
        destination) fault_point checking-the-destination ;;
        docker) fault_point checking-docker ;;
        *) fault_point checking-the-deployment ;;
    esac
    message=$(tool check "$1" 2>&1) || status=$?
    ((status != 124 && status != 137)) \
        || die 1 "checking the $1 was not over after $DOCKER_SECONDS s:" \
            "it, or Docker, does not answer"
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

# While we hold the lock, no other run is alive. So files that are named after another run are
# leftovers. A file that has its final name is never removed here.
remove_leftover_files() {
    local leftover
    for leftover in "$STAGING"/[0-9]*_[0-9]* \
        "$DESTINATION"/{sqlite,mysql,config,runs}/*[0-9]_[0-9]*.partial; do
        warn "removing what a dead run left: $leftover"
        rm -rf -- "$leftover"
    done
}

# Makes this run's directory in staging. The container is root there: it can replace every name,
# that of the directory too. So the host opens the directory before there is a container, and
# reaches its files through this descriptor.
make_work_directory() {
    mkdir -m 0700 -- "$WORK"
    exec 8<"$WORK"
    ANSWERS=/proc/$$/fd/8
}

# has_answer NAME: whether the container left something that has this name.
has_answer() { [[ -L $ANSWERS/$1 || -p $ANSWERS/$1 || -s $ANSWERS/$1 ]]; }

# read_answer NAME: prints the beginning of a file that the container wrote.
# It follows no link, does not wait for a pipe, and reads at most 64 KiB. Nobody may evaluate or
# execute what it prints.
read_answer() {
    local file=$ANSWERS/$1
    [[ $(stat --format '%F, %h' -- "$file" 2>/dev/null) == 'regular '*'file, 1' ]] || return 1
    limited 5 dd if="$file" iflag=nofollow,nonblock bs="$ANSWER_BYTES" count=1 status=none \
        2>/dev/null | tr '\0' '?'
}

# Replaces what could change a terminal or the log: control and format characters, invalid UTF-8.
printable() {
    python3 -I -S -c 'import sys
text = sys.stdin.buffer.read().decode(errors="replace").strip("\n")
text = "".join(one if one.isprintable() or one == "\n" else "?" for one in text)
sys.stdout.buffer.write(text.encode())'
}

# step_failed STEP STATUS LIMIT: ends the run with the reason that backup.sh left in staging.
step_failed() {
    local reason=''
    (($2 != 124 && $2 != 137)) \
        || die 1 "the $1 step was not over after its time limit of $3 s," \
            "or its container was killed"
    if has_answer reason; then
        reason=$(read_answer reason | printable) \
            || reason="the $1 step failed with exit code $2, and its reason is no regular file"
    fi
    [[ -n $reason ]] || die 1 "the $1 step failed with exit code $2; its message is in the log"
    die "$(($2 == 2 ? 2 : 1))" "$reason"
}

# record RESULT CODE: writes the run manifest. A backup exists when its run manifest exists.
record() {
    {
        printf '%s\n' "id=$RUN" "started=$STARTED" "result=$1" "exit_code=$2" \
            "reason=${REASON//$'\n'/ }" "quiesce=$QUIESCE" "window_seconds=$WINDOW_SECONDS"
        ((${#WARNINGS[@]} == 0)) || printf 'warning=%s\n' "${WARNINGS[@]}"
    } | tool record "${ANSWERS:-$WORK}"
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
        # Delete the run manifest before the backup files. Otherwise a manifest could report success
        # for files that no longer exist.
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
