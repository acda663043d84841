#!/usr/bin/env bash
# Backs up this host's Torrust Tracker in a short maintenance window; cron runs it, and so does whoever wants a backup now.
#
#   maintenance-backup.sh [--dry-run] [--force] [--recover] [--help]
#     --dry-run   check everything, say what would be done, touch nothing
#     --force     back up although the tracker is not running (it is not started afterwards)
#     --recover   bring back the tracker of a run that died or hangs; does nothing when there is none
#
# While the file /var/lib/tracker-backup/hold is there, neither runs nor recovery do anything.
# Exit codes: 0 success; 1 the backup failed, the tracker runs again; 2 configuration error; 3 skipped: the tracker is
# not running, or held; 4 the tracker could not be brought back; 75 another run holds the lock; 129, 130, 143 ended by
# a signal.
# shellcheck disable=SC2154  # the settings are assigned by sourcing the configuration
set -Eeuo pipefail
shopt -s inherit_errexit nullglob
umask 077
export LC_ALL=C TZ=UTC0

readonly NAME=maintenance-backup
readonly LOG_FILE=${TRACKER_BACKUP_LOG:-/var/log/tracker-backup.log}
readonly TOOL=${TRACKER_BACKUP_TOOL:-/usr/local/bin/tracker-backup}
# shellcheck source-path=SCRIPTDIR source=run.sh
source "${TRACKER_BACKUP_LIBRARY:-/usr/local/lib/tracker-backup}/run.sh"

export BUILDX_CONFIG=$STATE_DIR/buildx  # not in root's home, where it would stay for ever
readonly MARKER=$STATE_DIR/window
readonly DOCKER_PID_FILE=${TRACKER_BACKUP_DOCKER_PID_FILE:-/run/docker.pid}
readonly BUILD_SECONDS=1800             # for building or pulling the image, before the window
readonly STEADY_SECONDS=${TRACKER_BACKUP_STEADY_SECONDS:-3}
readonly BRING_BACK_SECONDS=${TRACKER_BACKUP_BRING_BACK_SECONDS:-20}
readonly OVERDUE_SECONDS=30             # how long after its capture's limit a live run is recovered from outside

FORCE=no RECOVER=no
CONTAINER=''                            # this run's backup container
TRACKER='' STARTED_AT=''                # the tracker's container id, and since when it ran
DOCKER_PID='' STACK=''                  # Docker, and the ids of the containers that it ran for the stack, as this run began
ACTION=none                             # what this run has done to the tracker and not undone: none, stop, pause
WINDOW_OPENED=''
LOOKED_AT='' CAPTURED_AT=''              # when the tracker's start was asked for, when the capture was over
FOUND=''                                # the tracker's status, start and exit code before it was brought back
INHIBITOR=''

# ---------------------------------------------------------------- helpers

docker_call() { limited "$1" docker "${@:2}" </dev/null; }

docker_wait() { limited_wait "$1" docker "${@:2}"; }

compose() {
    local project=()
    [[ -z $TRACKER ]] || project=(--project-name "$(inspect_tracker '{{index .Config.Labels "com.docker.compose.project"}}')")
    docker_call "$DOCKER_SECONDS" compose "${project[@]}" --project-directory "$DEPLOY_DIR" \
        --file "$DEPLOY_DIR/docker-compose.yml" --file "$DEPLOY_DIR/docker-compose.backup.yml" "$@"
}

# Compose repeats what it does not understand of `.env`, where the passwords are.
without_values() { sed -E '/variable is not set/d; /\.env: line /{s/(\.env: line [0-9]+: [^"'\''`]*).*/\1/; q}'; }

inspect_tracker() { docker_call "$DOCKER_SECONDS" inspect --type container --format "$1" "$TRACKER"; }

# Not the same as an inspect that fails: Docker answers, and does not know it.
tracker_is_gone() {
    local found
    found=$(docker_call "$DOCKER_SECONDS" ps --all --quiet --filter "id=$TRACKER") && [[ -z $found ]]
}

tracker_state() { inspect_tracker '{{.State.Status}} {{.State.StartedAt}} {{.State.ExitCode}}'; }

# in_container LIMIT STEP ARGUMENT...: one step of backup.sh, which says through staging that it is over, and why it failed.
in_container() {
    local limit=$1 status=0
    rm -f -- "$WORK/ended"
    limited_start "$limit" docker exec "$CONTAINER" /usr/local/bin/backup.sh "$2" "$RUN" "${@:3}"
    hang_up_when_ended "$CHILD" </dev/null >/dev/null 2>&1 9>&- &
    wait "$CHILD" || status=$?
    [[ ! -s $WORK/ended ]] || status=$(<"$WORK/ended")
    ((status == 0)) || step_failed "$2" "$status" "$limit"
}

# hang_up_when_ended CLIENT: Docker's client waits for ever for a step that ended while containerd was dead.
hang_up_when_ended() {
    local patience=5
    while kill -0 "$1" && ((patience > 0)); do
        [[ ! -s $WORK/ended ]] || patience=$((patience - 1))
        sleep 1
    done
    ((patience > 0)) || kill "$1"
}

# ---------------------------------------------------------------- before the window

parse_arguments() {
    while (($# > 0)); do
        case $1 in
            --dry-run) DRY_RUN=yes ;;
            --force) FORCE=yes ;;
            --recover) RECOVER=yes ;;
            -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;;
            *) printf 'maintenance-backup.sh: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
        esac
        shift
    done
}

load_config() {
    load_settings
    [[ $STRATEGY == maintenance-window ]] || die 2 "$CONFIG: STRATEGY='$STRATEGY'; this script runs maintenance-window"
    [[ $QUIESCE =~ ^(stop|pause|none)$ ]] || die 2 "$CONFIG: QUIESCE='$QUIESCE'; allowed: stop pause none"
    [[ $STOP_TIMEOUT_SECONDS$WINDOW_TIMEOUT_SECONDS =~ ^[0-9]+$ ]] || die 2 "$CONFIG: time limits are whole seconds"
    readonly STAGING=$DEPLOY_DIR/storage/backup-staging
    # The rest of the window is for bringing the tracker back; should this script hang, for cron's recovery to notice it.
    readonly CAPTURE_SECONDS=$((WINDOW_TIMEOUT_SECONDS * 2 / 3))
}

take_lock() {
    install -d -m 0700 "$STATE_DIR"
    exec 9>>"$STATE_DIR/lock"
    if [[ $RECOVER == yes ]]; then
        flock --nonblock 9 || is_overdue || { trap - EXIT; exit 0; }
        [[ /proc/self/fd/9 -ef $STATE_DIR/lock ]] || die 2 "uninstalled while waiting for the lock; nothing was done"
    else
        wait_for_lock
    fi
}

# A live run keeps its window to itself until its deadline; after that the tracker matters more.
is_overdue() {
    local deadline
    read -r _ _ _ _ deadline _ <"$MARKER" && ((EPOCHSECONDS > deadline))
}

remove_leftovers() {
    local containers leftover
    containers=$(docker_call "$DOCKER_SECONDS" ps --all --quiet --filter label=tracker-backup.run) || die 1 'Docker does not answer'
    for leftover in $containers; do
        warn "removing the container of a dead run: $leftover"
        docker_call "$DOCKER_SECONDS" rm --force "$leftover" >/dev/null
    done
    remove_leftover_files
}

require_image() {
    docker_call "$DOCKER_SECONDS" image inspect "$IMAGE" >/dev/null 2>&1 && return
    [[ $DRY_RUN == no ]] || { log "the image $IMAGE is missing and would be made; stopping here"; exit 0; }
    warn "the image $IMAGE is missing; $IMAGE_SOURCE, before the window"
    if [[ $IMAGE_SOURCE == build ]]; then
        docker_wait "$BUILD_SECONDS" build --tag "$IMAGE" "$DEPLOY_DIR/backup"
    else
        docker_wait "$BUILD_SECONDS" pull "$IMAGE"
    fi || die 1 "the image $IMAGE could not be made ($IMAGE_SOURCE)"
}

# The ids of the containers of this deploy directory, one a line; arguments choose among them.
stack_ids() {
    local id directory
    docker_call "$DOCKER_SECONDS" ps --no-trunc --filter label=com.docker.compose.oneoff=False "$@" \
        --format '{{.ID}} {{.Label "com.docker.compose.project.working_dir"}}' \
        | while read -r id directory; do
            [[ ! $directory -ef $DEPLOY_DIR ]] || printf '%s\n' "$id"
        done 9>&-
}

tracker_ids() { stack_ids --all --filter label=com.docker.compose.service=tracker; }

# What runs here as this run begins: Docker that is killed takes all of it down, and starts nothing that is `unless-stopped`.
note_stack() {
    [[ -r $DOCKER_PID_FILE ]] || return 0
    DOCKER_PID=$(<"$DOCKER_PID_FILE")
    STACK=$(stack_ids) || die 1 'Docker does not list its containers'
}

raise_stack() {
    local ids
    [[ -n $DOCKER_PID ]] || return 0
    # The first question may still go to the one that is dying.
    docker_call "$DOCKER_SECONDS" version >/dev/null 2>&1 || (($? == 124)) || docker_call "$DOCKER_SECONDS" version >/dev/null 2>&1
    [[ $(<"$DOCKER_PID_FILE") != "$DOCKER_PID" ]] || return 0
    DOCKER_PID=$(<"$DOCKER_PID_FILE")
    warn 'Docker has died during this run; starting what it took down'
    mapfile -t ids <<<"$STACK"
    docker_call "$DOCKER_SECONDS" start "${ids[@]}" >/dev/null
}

find_tracker() {
    local status=missing
    LOOKED_AT=$EPOCHREALTIME
    TRACKER=$(tracker_ids) || die 1 'Docker does not list its containers'
    [[ $TRACKER != *$'\n'* ]] || die 1 "more than one container of the service tracker in $DEPLOY_DIR"
    [[ -z $TRACKER ]] || read -r status STARTED_AT < <(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}')
    [[ $status != running ]] || return 0
    [[ $FORCE == yes ]] || die 3 "skipped: the tracker is $status, not running; --force backs up anyway"
    warn "the tracker is $status; backing up because of --force, and not starting it afterwards"
    QUIESCE=left-$status
}

# The one container of this run, started before the window: starting one inside it would double a short window.
start_container() {
    CONTAINER=tracker-backup-$RUN
    mkdir -m 0700 -- "$WORK"
    tool expect "$WORK"
    compose --profile backup run --detach --no-deps -T --name "$CONTAINER" --label "tracker-backup.run=$RUN" backup >/dev/null 2>"$WORK/compose" \
        || { without_values <"$WORK/compose" >&2; die 1 'the backup container could not be started; the message is in the log'; }
}

# ---------------------------------------------------------------- the window

open_window() {
    [[ $QUIESCE == stop || $QUIESCE == pause ]] || return 0
    inhibit_shutdown
    write_marker
    log "window opens: $QUIESCE the tracker"
    WINDOW_OPENED=$(microseconds) FOUND=''
    ACTION=$QUIESCE                     # before the call: what is interrupted here goes on in Docker
    if [[ $QUIESCE == stop ]]; then
        docker_call "$((STOP_TIMEOUT_SECONDS + 30))" stop -t "$STOP_TIMEOUT_SECONDS" "$TRACKER" >/dev/null || die 1 'the tracker could not be stopped'
    else
        docker_call "$DOCKER_SECONDS" pause "$TRACKER" >/dev/null || die 1 'the tracker could not be paused'
    fi
}

# What --recover needs to bring the tracker back when this run cannot: on disk before the tracker is touched.
write_marker() {
    local opened=$EPOCHSECONDS
    printf '%s\n' "$TRACKER $STARTED_AT $QUIESCE $opened $((opened + CAPTURE_SECONDS + OVERDUE_SECONDS)) $STOP_TIMEOUT_SECONDS $RUN" \
        >"$MARKER.partial"
    sync -- "$MARKER.partial"
    mv -T -- "$MARKER.partial" "$MARKER"
    sync -- "$STATE_DIR"
}

# Unattended upgrades reboot at night, too; a window is short enough to wait for.
inhibit_shutdown() {
    [[ -d /run/systemd/system ]] && command -v systemd-inhibit >/dev/null || return 0
    local limit=$((CAPTURE_SECONDS + OVERDUE_SECONDS))
    timeout "$limit" systemd-inhibit --what=shutdown --mode=block --who=tracker-backup --why='the tracker is stopped for its backup' \
        tail --pid="$$" --follow /dev/null </dev/null >>"$LOG_FILE" 2>&1 9>&- &
    INHIBITOR=$!
}

# Of a tracker that does not run, whoever stopped it, the files are copied.
method() { [[ $QUIESCE == none ]] && printf online || printf copy; }

capture() {
    local limit=$WORK_SECONDS
    if [[ $ACTION != none ]]; then
        limit=$((CAPTURE_SECONDS - ($(microseconds) - WINDOW_OPENED) / 1000000))
        ((limit > 0)) || die 1 "the window's limit of $CAPTURE_SECONDS s for stopping and capturing is over"
    fi
    in_container "$limit" capture "$(method)"
    CAPTURED_AT=$EPOCHREALTIME
}

# A copy taken while somebody started the tracker is torn, and no integrity_check sees it. Each question to Docker takes
# a twentieth of a second or more: in the window there is only the one that bring_back asks anyway.
look_back() {
    local expected=${QUIESCE#left-} ids events
    case $QUIESCE in
        none) return ;;
        stop) expected=exited ;;
        pause) expected=paused ;;
        *) [[ -z $TRACKER ]] || FOUND=$(tracker_state) || true ;;
    esac
    ids=$(tracker_ids) || die 1 'Docker does not say whether the tracker was changed during the capture; the copy is discarded'
    ids=${ids//$'\n'/ }
    [[ $ids == "$TRACKER" && (-z $TRACKER || $FOUND == "$expected $STARTED_AT "*) ]] \
        || die 1 "the tracker was changed during the capture (was: $TRACKER $expected $STARTED_AT; is: ${ids:-gone}${FOUND:+ $FOUND}); the copy is discarded"
    [[ -n $TRACKER ]] || return 0
    events=$(docker_call "$DOCKER_SECONDS" events --since "$LOOKED_AT" --until "$CAPTURED_AT" --filter "container=$TRACKER" \
        --filter event=start --filter event=unpause --format '{{.Action}}') \
        || die 1 'Docker does not say whether the tracker was changed during the capture; the copy is discarded'
    [[ -z $events ]] || die 1 "the tracker was changed during the capture (${events//$'\n'/ }); the copy is discarded"
    [[ $QUIESCE != stop || $FOUND != *' 137' ]] \
        || log "the tracker did not end within $STOP_TIMEOUT_SECONDS s and was killed; a hot journal is to be expected"
}

# Starts or unpauses exactly what this run stopped or paused, whatever state it is found in; ACTION `none` afterwards says
# that it is no longer ours to bring back.
bring_back() {
    local attempt status='' since code patience=$((BRING_BACK_SECONDS + STOP_TIMEOUT_SECONDS)) began=$SECONDS
    for ((attempt = 0; attempt <= patience && SECONDS - began <= patience; attempt++)); do
        ((attempt == 0)) || sleep 1
        # Of a container that is gone, Docker prints an empty line.
        read -r status since code < <(tracker_state) || status=''
        [[ -n $FOUND || -z $status ]] || FOUND="$status $since $code"
        if [[ -z $status ]]; then
            tracker_is_gone || continue
            log 'the tracker container that this run stopped was removed by somebody; leaving things as they are'
            ACTION=none
            return 0
        fi
        case $status in
            exited)
                if [[ $ACTION == pause ]] && was_stopped_by_somebody; then
                    log 'the tracker was stopped by somebody while it was paused; leaving it as it is'
                    ACTION=none
                    return 0
                fi
                docker_call "$DOCKER_SECONDS" start "$TRACKER" >/dev/null || continue
                ;;
            running)
                # An interrupted stop goes on in Docker; a start before its end is lost.
                [[ $ACTION != stop || $since != "$STARTED_AT" ]] || continue
                break
                ;;
            paused) docker_call "$DOCKER_SECONDS" unpause "$TRACKER" >/dev/null || continue ;;
            restarting) continue ;;
            *) docker_call "$DOCKER_SECONDS" start "$TRACKER" >/dev/null || continue ;;
        esac
        status=$(inspect_tracker '{{.State.Status}}') && [[ $status == running ]] && break
    done
    [[ $status == running ]] || return 1            # still the same start: the stop never took effect
    WINDOW_SECONDS=$(seconds_since "$WINDOW_OPENED")
    log "window closed: the tracker runs again after $WINDOW_SECONDS s"
}

# The marker goes when the tracker has run steadily, or is no longer ours to bring back.
close_window() {
    local since
    [[ $ACTION != none ]] || return 0
    bring_back || { REASON="the tracker $TRACKER could not be brought back (docker start $TRACKER)${REASON:+; before that: $REASON}"; return 4; }
    [[ -z $INHIBITOR ]] || kill "$INHIBITOR" 2>/dev/null || true
    if [[ $ACTION != none ]]; then
        ACTION=none
        since=$(inspect_tracker '{{.State.StartedAt}}') || since=unknown
        sleep "$STEADY_SECONDS"
        [[ $(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}') == "running $since" ]] \
            || { REASON="the tracker does not run steadily after the window (docker logs $TRACKER)${REASON:+; before that: $REASON}"; return 4; }
    fi
    remove_marker
}

# Of this run, or of the one that is recovered; without the lock, another may have opened its window meanwhile.
remove_marker() { [[ $(<"$MARKER") != *" $RUN" ]] || rm -f -- "$MARKER"; }

# Takes over the window of a dead run, or of one past its deadline; nothing of the deploy directory is read.
recover() {
    local opened status since
    read -r TRACKER STARTED_AT ACTION opened _ STOP_TIMEOUT_SECONDS RUN <"$MARKER" || { rm -f -- "$MARKER"; return 0; }
    log "recovery: run $RUN left a window open ($ACTION); it is dead or past its deadline"
    WINDOW_OPENED=${opened}000000
    read -r status since < <(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}') || status=''
    [[ -n $status ]] || tracker_is_gone || { ACTION=none; die 4 'Docker does not answer; recovery tries again within a minute'; }
    if is_as_left "$status" "$since"; then
        close_window || exit "$?"
    else
        log 'recovery: somebody has stopped, started or replaced the tracker since; leaving it as it is'
        remove_marker
    fi
    ACTION=none RUN=''
}

# is_as_left STATUS START. What still runs may be stopped or paused any moment by the dead run's last call.
is_as_left() {
    [[ $2 == "$STARTED_AT" ]] || return 1
    case $ACTION-$1 in
        stop-exited | stop-running | pause-paused | pause-running) ;;
        pause-exited) ! was_stopped_by_somebody ;;
        *) return 1 ;;
    esac
}

# A paused tracker is found exited when Docker died with SIGKILL, and then Docker was started after the window opened; or
# when somebody stopped it, which Docker then tells.
was_stopped_by_somebody() {
    [[ ! $DOCKER_PID_FILE -nt $MARKER && -n $(docker_call "$DOCKER_SECONDS" events --since "${WINDOW_OPENED%??????}" --until "$EPOCHREALTIME" \
        --filter "container=$TRACKER" --filter event=stop --filter event=kill --format '{{.Action}}') ]]
}

# ---------------------------------------------------------------- after the window

finish() {
    in_container "$WORK_SECONDS" finish
    record_success
    push
}

# The copy elsewhere. Without it the backup is one all the same, and the next run makes up for it.
push() {
    local status=0
    timeout --kill-after=60 "$WORK_SECONDS" "$TOOL" push --in-run </dev/null >"$WORK/push" 2>&1 9>&- &
    CHILD=$!
    wait "$CHILD" || status=$?
    cat -- "$WORK/push"
    ((status == 0)) || die 1 "the backup was published, but $(tail -n 1 -- "$WORK/push" | sed 's/^error: //')"
}

on_exit() {
    local code=$1
    trap '' HUP INT TERM
    trap - ERR EXIT
    set +e
    raise_stack
    ((code == 4)) || close_window || code=4
    [[ -z $CHILD ]] || kill "$CHILD" 2>/dev/null
    [[ -z $CONTAINER ]] || docker_call "$DOCKER_SECONDS" rm --force "$CONTAINER" >/dev/null 2>&1
    raise_stack                         # the last call, at which Docker may have died
    end_run "$code"
}

run() {
    local room=()
    trap_signals
    [[ ! -e $MARKER ]] || recover
    [[ $RECOVER == no ]] || return 0
    load_config
    note_stack
    begin_run
    remove_leftovers
    check docker
    find_tracker
    check deployment
    require_image
    start_container
    [[ $DRY_RUN == yes || ! $QUIESCE =~ ^(stop|pause)$ ]] || room=(room)
    in_container "$PREFLIGHT_SECONDS" preflight "$(method)" "${room[@]}"
    if [[ $DRY_RUN == yes ]]; then
        log "dry run: everything is ready; would now $QUIESCE the tracker, capture, and publish to $DESTINATION"
        return
    fi
    [[ $QUIESCE == left-* ]] || find_tracker            # again: making the image can take half an hour
    open_window
    capture
    close_window || exit "$?"
    look_back
    finish
}

main() {
    parse_arguments "$@"
    [[ $RECOVER == no || -e $MARKER || -e $RESTORE ]] || exit 0
    open_log
    trap 'on_exit "$?"' EXIT
    [[ ! -e $HOLD ]] || die 3 "held: nothing is done while $HOLD is there"
    [[ ! -e $RESTORE ]] || "$TOOL" rollback || die 4 'a restore that died could not be rolled back; see the lines above'
    [[ $RECOVER == no || -e $MARKER ]] || exit 0
    take_lock
    [[ ! -e $RESTORE ]] || die 4 "a restore died and is still to be rolled back: $RESTORE"
    run
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
