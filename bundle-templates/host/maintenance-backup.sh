#!/usr/bin/env bash
# Backs up this host's Torrust Tracker in a short maintenance window. Cron runs it. Run it by hand
# to get a backup now.
#
#   maintenance-backup.sh [--dry-run] [--force] [--recover] [--help]
#     --dry-run   check everything, say what would be done, touch nothing
#     --force     back up although the tracker is not running (it is not started afterwards)
#     --recover   bring back the tracker of a run that died or hangs; if there is none, do nothing
#
# While the file /var/lib/tracker-backup/hold is there, neither runs nor recovery do anything.
# Exit codes: 0 success; 1 the backup failed, the tracker runs again; 2 configuration error;
# 3 skipped: the tracker is not running, or held; 4 the tracker could not be brought back;
# 75 another run holds the lock; 129, 130, 143 ended by a signal.
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
# What our own programs print. It is not in staging, because a container could plant a link there.
readonly COMPOSE_OUTPUT=$STATE_DIR/compose.output PUSH_OUTPUT=$STATE_DIR/push.output
readonly DOCKER_PID_FILE=${TRACKER_BACKUP_DOCKER_PID_FILE:-/run/docker.pid}
readonly BUILD_SECONDS=1800             # for building or pulling the image, before the window
readonly STEADY_SECONDS=${TRACKER_BACKUP_STEADY_SECONDS:-3}
readonly RESUME_SECONDS=${TRACKER_BACKUP_BRING_BACK_SECONDS:-20}
# So long after the limit of its capture, another process recovers a run that is still alive.
readonly OVERDUE_SECONDS=30
readonly PAUSE_RETRY_SECONDS=${TRACKER_BACKUP_PAUSE_RETRY_SECONDS:-5}

FORCE=no RECOVER=no
CONTAINER=''                            # this run's backup container
TRACKER='' STARTED_AT=''                # the tracker's container id, and since when it ran
# When this run began: Docker's process id, and the ids of the stack's running containers.
DOCKER_PID='' STACK=''
# What this run did to the tracker and has not undone: none, stop, pause.
ACTION=none
PROVING=no                              # whether our own container may be paused, for the proof
WINDOW_OPENED=''
# When the run asked Docker for the tracker's start, and when the capture was over.
LOOKED_AT='' CAPTURED_AT=''
# The tracker's status, start and exit code before this run brought it back.
FOUND=''
INHIBITOR=''

# ---------------------------------------------------------------- helpers

docker_call() { limited "$1" docker "${@:2}" </dev/null; }

docker_wait() { limited_wait "$1" docker "${@:2}"; }

compose() {
    local project=()
    [[ -z $TRACKER ]] || project=(--project-name
        "$(inspect_tracker '{{index .Config.Labels "com.docker.compose.project"}}')")
    docker_call "$DOCKER_SECONDS" compose "${project[@]}" --project-directory "$DEPLOY_DIR" \
        --file "$DEPLOY_DIR/docker-compose.yml" --file "$DEPLOY_DIR/docker-compose.backup.yml" "$@"
}

# Compose repeats what it does not understand of `.env`, where the passwords are.
without_values() {
    sed -E '/variable is not set/d; /\.env: line /{s/(\.env: line [0-9]+: [^"'\''`]*).*/\1/; q}'
}

inspect_tracker() {
    docker_call "$DOCKER_SECONDS" inspect --type container --format "$1" "$TRACKER"
}

# Docker answers, and does not know the tracker. An inspect that fails does not say this.
tracker_is_gone() {
    local found
    found=$(docker_call "$DOCKER_SECONDS" ps --all --quiet --filter "id=$TRACKER") \
        && [[ -z $found ]]
}

tracker_state() { inspect_tracker '{{.State.Status}} {{.State.StartedAt}} {{.State.ExitCode}}'; }

# in_container LIMIT STEP ARGUMENT...: one step of backup.sh. The step leaves its exit code in the
# file `ended` in staging, and the reason of a failure in `reason`.
in_container() {
    local limit=$1 status=0 code environment=()
    [[ -z ${TRACKER_BACKUP_STOP_AT-} ]] || environment=(--env TRACKER_BACKUP_STOP_AT)
    rm -rf -- "$ANSWERS/ended"
    limited_start "$limit" docker exec "${environment[@]}" "$CONTAINER" \
        /usr/local/bin/backup.sh "$2" "$RUN" "${@:3}"
    end_client_when_step_ended "$CHILD" </dev/null >/dev/null 2>&1 9>&- &
    wait "$CHILD" || status=$?
    if has_answer ended; then
        code=$(read_answer ended) || code=''
        [[ $code =~ ^[0-9]{1,3}$ ]] || die 1 "the $2 step left an exit code that is no number"
        status=$((10#$code))
    fi
    ((status == 0)) || step_failed "$2" "$status" "$limit"
}

# end_client_when_step_ended CLIENT: if a step ends while containerd is dead, Docker's client waits
# for ever.
end_client_when_step_ended() {
    local patience=5
    while kill -0 "$1" && ((patience > 0)); do
        ! has_answer ended || patience=$((patience - 1))
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
    [[ $STRATEGY == maintenance-window ]] \
        || die 2 "$CONFIG: STRATEGY='$STRATEGY'; this script runs maintenance-window"
    [[ $QUIESCE =~ ^(stop|pause|none)$ ]] \
        || die 2 "$CONFIG: QUIESCE='$QUIESCE'; allowed: stop pause none"
    [[ $STOP_TIMEOUT_SECONDS/$WINDOW_TIMEOUT_SECONDS =~ ^[0-9]{1,6}/[0-9]{1,6}$ ]] \
        || die 2 "$CONFIG: time limits are whole seconds"
    readonly STAGING=$DEPLOY_DIR/storage/backup-staging
    # In the rest of the window the tracker comes back. If this script hangs, cron's recovery needs
    # the rest to notice it.
    readonly CAPTURE_SECONDS=$((10#$WINDOW_TIMEOUT_SECONDS * 2 / 3))
}

take_lock() {
    install -d -m 0700 "$STATE_DIR"
    exec 9>>"$STATE_DIR/lock"
    if [[ $RECOVER == yes ]]; then
        flock --nonblock 9 || is_overdue || { trap - EXIT; exit 0; }
        [[ /proc/self/fd/9 -ef $STATE_DIR/lock ]] \
            || die 2 'uninstalled while waiting for the lock; nothing was done'
    else
        wait_for_lock
    fi
}

# Until its deadline, nobody else touches the window of a live run. After that the tracker matters
# more.
is_overdue() {
    local deadline
    read -r _ _ _ _ deadline _ <"$MARKER" && [[ $deadline =~ ^[0-9]{1,18}$ ]] \
        && ((EPOCHSECONDS > 10#$deadline))
}

remove_leftovers() {
    local containers leftover state
    fault_point looking-for-what-dead-runs-left
    containers=$(docker_call "$DOCKER_SECONDS" ps --all --filter label=tracker-backup.run \
        --format '{{.ID}} {{.State}}') || die 1 'Docker does not answer'
    while read -r leftover state; do
        [[ -n $leftover ]] || continue
        warn "removing the container of a dead run: $leftover"
        # With cgroup v1, a frozen process does not die of SIGKILL.
        [[ $state != paused ]] || docker_call "$DOCKER_SECONDS" unpause "$leftover" >/dev/null \
            || warn "the paused container $leftover could not be unpaused"
        docker_call "$DOCKER_SECONDS" rm --force "$leftover" >/dev/null
    done <<<"$containers"
    remove_leftover_files
}

require_image() {
    fault_point looking-for-the-image
    docker_call "$DOCKER_SECONDS" image inspect "$IMAGE" >/dev/null 2>&1 && return
    if [[ $DRY_RUN == yes ]]; then
        log "the image $IMAGE is missing and would be made; stopping here"
        exit 0
    fi
    warn "the image $IMAGE is missing; $IMAGE_SOURCE, before the window"
    if [[ $IMAGE_SOURCE == build ]]; then
        docker_wait "$BUILD_SECONDS" build --tag "$IMAGE" "$DEPLOY_DIR/backup"
    else
        docker_wait "$BUILD_SECONDS" pull "$IMAGE"
    fi || die 1 "the image $IMAGE could not be made ($IMAGE_SOURCE)"
}

# Prints the ids of this deploy directory's containers, one a line. Arguments are filters.
stack_ids() {
    local id directory
    docker_call "$DOCKER_SECONDS" ps --no-trunc "$@" \
        --filter label=com.docker.compose.oneoff=False \
        --format '{{.ID}} {{.Label "com.docker.compose.project.working_dir"}}' \
        | while read -r id directory; do
            [[ ! $directory -ef $DEPLOY_DIR ]] || printf '%s\n' "$id"
        done 9>&-
}

tracker_ids() { stack_ids --all --filter label=com.docker.compose.service=tracker; }

# Remembers which containers run when this run begins. If dockerd is killed, it stops all containers
# when it starts again. It does not restart those with `restart: unless-stopped`.
remember_stack() {
    DOCKER_PID=$(docker_pid) || return 0
    STACK=$(stack_ids) || die 1 'Docker does not list its containers'
}

docker_pid() {
    local pid=''
    [[ -r $DOCKER_PID_FILE ]] || return 1
    read -r pid <"$DOCKER_PID_FILE" || true
    [[ $pid =~ ^[0-9]{1,18}$ ]] && printf '%s' "$pid"
}

# Starts the remembered containers if Docker died during this run.
restart_stack() {
    local ids pid
    [[ -n $DOCKER_PID ]] || return 0
    # A dying dockerd may still get the first question.
    docker_call "$DOCKER_SECONDS" version >/dev/null 2>&1 || (($? == 124)) \
        || docker_call "$DOCKER_SECONDS" version >/dev/null 2>&1
    pid=$(docker_pid) || pid=none
    [[ $pid != "$DOCKER_PID" ]] || return 0
    DOCKER_PID=$pid
    warn 'Docker has died during this run; starting what it took down'
    mapfile -t ids <<<"$STACK"
    docker_call "$DOCKER_SECONDS" start "${ids[@]}" >/dev/null
}

find_tracker() {
    local status=missing
    LOOKED_AT=$EPOCHREALTIME
    TRACKER=$(tracker_ids) || die 1 'Docker does not list its containers'
    [[ $TRACKER != *$'\n'* ]] \
        || die 1 "more than one container of the service tracker in $DEPLOY_DIR"
    [[ -z $TRACKER ]] \
        || read -r status STARTED_AT < <(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}')
    [[ $status != running ]] || return 0
    [[ $FORCE == yes ]] \
        || die 3 "skipped: the tracker is $status, not running; --force backs up anyway"
    warn "the tracker is $status; backing up because of --force, and not starting it afterwards"
    QUIESCE=left-$status
}

# Starts the container of this run before the window. Starting it in the window would double a short
# window.
start_container() {
    CONTAINER=tracker-backup-$RUN
    make_work_directory
    tool expect "$WORK"
    fault_point starting-the-container
    compose --profile backup run --detach --no-deps -T --name "$CONTAINER" \
        --label "tracker-backup.run=$RUN" backup >/dev/null 2>"$COMPOSE_OUTPUT" \
        || {
            without_values <"$COMPOSE_OUTPUT" >&2
            die 1 'the backup container could not be started; the message is in the log'
        }
}

# Pauses and unpauses our own container, before the tracker is touched. An engine that cannot pause
# (its cgroups have no freezer) is a configuration error.
prove_pause() {
    local message='' attempt
    [[ $QUIESCE == pause ]] || return 0
    fault_point proving-pause
    PROVING=yes
    # Docker fails for some seconds, too, when containerd was killed.
    for attempt in 1 2 3; do
        ((attempt == 1)) || sleep "$PAUSE_RETRY_SECONDS"
        if message=$(pause_and_unpause_container 2>&1); then
            PROVING=no
            return 0
        fi
    done
    message=$(printable <<<"${message//$'\n'/ }")
    container_is_there || die 1 "the backup container did not stay up ($message)"
    die 2 "this Docker engine cannot pause containers ($message): set backup.quiesce to 'stop'" \
        "in the environment file, generate and install again"
}

pause_and_unpause_container() {
    docker_call "$DOCKER_SECONDS" pause "$CONTAINER" >/dev/null || [[ $attempt != 1 ]] || return 1
    docker_call "$DOCKER_SECONDS" unpause "$CONTAINER" >/dev/null
}

container_is_there() {
    local found
    found=$(docker_call "$DOCKER_SECONDS" ps --quiet --filter "label=tracker-backup.run=$RUN") \
        && [[ -n $found ]]
}

# ---------------------------------------------------------------- the window

open_window() {
    [[ $QUIESCE == stop || $QUIESCE == pause ]] || return 0
    inhibit_shutdown
    write_marker
    log "window opens: $QUIESCE the tracker"
    WINDOW_OPENED=$(microseconds) FOUND=''
    # Set this before the call. If we are interrupted, Docker still completes the call.
    ACTION=$QUIESCE
    fault_point taking-the-tracker-down
    if [[ $QUIESCE == stop ]]; then
        docker_call "$((10#$STOP_TIMEOUT_SECONDS + 30))" stop -t "$STOP_TIMEOUT_SECONDS" \
            "$TRACKER" >/dev/null || die 1 'the tracker could not be stopped'
    else
        docker_call "$DOCKER_SECONDS" pause "$TRACKER" >/dev/null \
            || die 1 "the tracker could not be paused; if it happens again, set backup.quiesce to" \
                "'stop' in the environment file, generate and install again"
    fi
}

# If this run dies, --recover needs the marker to bring the tracker back. So the marker is on disk
# before the tracker is touched.
write_marker() {
    local opened=$EPOCHSECONDS deadline
    deadline=$((opened + CAPTURE_SECONDS + OVERDUE_SECONDS))
    printf '%s\n' \
        "$TRACKER $STARTED_AT $QUIESCE $opened $deadline $STOP_TIMEOUT_SECONDS $RUN" \
        >"$MARKER.partial"
    fault_point syncing-the-marker
    sync -- "$MARKER.partial"
    fault_point renaming-the-marker
    mv -T -- "$MARKER.partial" "$MARKER"
    sync -- "$STATE_DIR"
}

# Unattended upgrades can reboot at night. A window is short, so the reboot waits for it.
inhibit_shutdown() {
    [[ -d /run/systemd/system ]] && command -v systemd-inhibit >/dev/null || return 0
    local limit=$((CAPTURE_SECONDS + OVERDUE_SECONDS))
    timeout "$limit" systemd-inhibit --what=shutdown --mode=block --who=tracker-backup \
        --why='the tracker is stopped or frozen for its backup' \
        tail --pid="$$" --follow /dev/null </dev/null >>"$LOG_FILE" 2>&1 9>&- 8<&- &
    INHIBITOR=$!
}

# If the tracker does not run, whoever stopped it, the capture copies its files.
method() { [[ $QUIESCE == none ]] && printf online || printf copy; }

capture() {
    local limit=$WORK_SECONDS
    if [[ $ACTION != none ]]; then
        limit=$((CAPTURE_SECONDS - ($(microseconds) - WINDOW_OPENED) / 1000000))
        ((limit > 0)) \
            || die 1 "the window's limit of $CAPTURE_SECONDS s for stopping and capturing is over"
    fi
    fault_point beginning-the-capture
    in_container "$limit" capture "$(method)"
    CAPTURED_AT=$EPOCHREALTIME
}

# If somebody starts the tracker during the capture, the copy is torn and no integrity_check sees
# it. A question to Docker takes 50 ms or more, so most questions are asked after the window.
check_tracker_was_unchanged() {
    local expected=${QUIESCE#left-} ids events unknown was
    unknown='Docker does not say whether the tracker was changed during the capture; '
    unknown+='the copy is discarded'
    case $QUIESCE in
        none) return ;;
        stop) expected=exited ;;
        pause) expected=paused ;;
        *) [[ -z $TRACKER ]] || FOUND=$(tracker_state) || true ;;
    esac
    ids=$(tracker_ids) || die 1 "$unknown"
    ids=${ids//$'\n'/ }
    was="was: $TRACKER $expected $STARTED_AT; is: ${ids:-gone}${FOUND:+ $FOUND}"
    [[ $ids == "$TRACKER" && (-z $TRACKER || $FOUND == "$expected $STARTED_AT "*) ]] \
        || die 1 "the tracker was changed during the capture ($was); the copy is discarded"
    [[ -n $TRACKER ]] || return 0
    fault_point looking-back-at-the-window
    events=$(docker_call "$DOCKER_SECONDS" events --since "$LOOKED_AT" --until "$CAPTURED_AT" \
        --filter "container=$TRACKER" --filter event=start --filter event=unpause \
        --format '{{.Action}}') || die 1 "$unknown"
    [[ -z $events ]] || die 1 "the tracker was changed during the capture" \
        "(${events//$'\n'/ }); the copy is discarded"
    [[ $QUIESCE != stop || $FOUND != *' 137' ]] \
        || log "the tracker did not end within $STOP_TIMEOUT_SECONDS s and was killed;" \
            "a hot journal is to be expected"
}

# Starts or unpauses exactly what this run stopped or paused, whatever its state is now. ACTION
# `none` afterwards means that somebody else took over the tracker.
resume_tracker() {
    local attempt status='' since code began=$SECONDS
    local patience=$((RESUME_SECONDS + 10#$STOP_TIMEOUT_SECONDS))
    fault_point bringing-the-tracker-back
    for ((attempt = 0; attempt <= patience && SECONDS - began <= patience; attempt++)); do
        ((attempt == 0)) || sleep 1
        # `docker inspect` prints an empty line when the container does not exist.
        read -r status since code < <(tracker_state) || status=''
        [[ -n $FOUND || -z $status ]] || FOUND="$status $since $code"
        if [[ -z $status ]]; then
            tracker_is_gone || continue
            log "the tracker container that this run stopped was removed by somebody;" \
                "leaving things as they are"
            ACTION=none
            return 0
        fi
        case $status in
            exited)
                if [[ $ACTION == pause ]] && was_stopped_by_somebody; then
                    log "the tracker was stopped by somebody while it was paused;" \
                        "leaving it as it is"
                    ACTION=none
                    return 0
                fi
                docker_call "$DOCKER_SECONDS" start "$TRACKER" >/dev/null || continue
                ;;
            running)
                # Docker completes an interrupted stop. A start before its end has no effect.
                [[ $ACTION != stop || $since != "$STARTED_AT" ]] || continue
                break
                ;;
            paused) docker_call "$DOCKER_SECONDS" unpause "$TRACKER" >/dev/null || continue ;;
            restarting) continue ;;
            *) docker_call "$DOCKER_SECONDS" start "$TRACKER" >/dev/null || continue ;;
        esac
        status=$(inspect_tracker '{{.State.Status}}') && [[ $status == running ]] && break
    done
    # If it runs since the same start, the stop never took effect.
    [[ $status == running ]] || return 1
    WINDOW_SECONDS=$(seconds_since "$WINDOW_OPENED")
    log "window closed: the tracker runs again after $WINDOW_SECONDS s"
}

# Brings the tracker back. Removes the marker when the tracker runs steadily, or when somebody else
# took it over.
close_window() {
    local since earlier=${REASON:+; before that: $REASON}
    [[ $ACTION != none ]] || return 0
    resume_tracker || {
        REASON="the tracker $TRACKER could not be brought back (docker start $TRACKER)$earlier"
        return 4
    }
    [[ -z $INHIBITOR ]] || kill "$INHIBITOR" 2>/dev/null || true
    if [[ $ACTION != none ]]; then
        ACTION=none
        since=$(inspect_tracker '{{.State.StartedAt}}') || since=unknown
        sleep "$STEADY_SECONDS"
        [[ $(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}') == "running $since" ]] || {
            REASON="the tracker does not run steadily after the window "
            REASON+="(docker logs $TRACKER)$earlier"
            return 4
        }
    fi
    remove_marker
}

# Removes the marker of this run, or of the run that is recovered. A recovery may hold no lock: then
# another run can have written its own marker meanwhile.
remove_marker() {
    fault_point removing-the-marker
    [[ $(<"$MARKER") != *" $RUN" ]] || rm -f -- "$MARKER"
}

# Reads the marker of another run. Its fields are used in arithmetic and in calls of Docker.
read_marker() {
    local line='' opened pattern
    pattern='^([0-9a-f]{1,64}) ([0-9A-Za-z:.+-]{1,64}) (stop|pause) '
    pattern+='([0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,6}) ([0-9]{8}_[0-9]{6})$'
    IFS= read -r line <"$MARKER" || true
    [[ $line =~ $pattern ]] || return 1
    TRACKER=${BASH_REMATCH[1]} STARTED_AT=${BASH_REMATCH[2]} ACTION=${BASH_REMATCH[3]}
    opened=${BASH_REMATCH[4]} STOP_TIMEOUT_SECONDS=${BASH_REMATCH[6]} RUN=${BASH_REMATCH[7]}
    WINDOW_OPENED=$((10#$opened))000000
}

# Takes over the window of a run that is dead or past its deadline. It reads nothing of the deploy
# directory.
recover() {
    local status since
    [[ -s $MARKER ]] || { rm -f -- "$MARKER"; return 0; }
    read_marker || die 4 "the marker $MARKER is damaged: see that the tracker runs, then remove it"
    log "recovery: run $RUN left a window open ($ACTION); it is dead or past its deadline"
    read -r status since < <(inspect_tracker '{{.State.Status}} {{.State.StartedAt}}') || status=''
    [[ -n $status ]] || tracker_is_gone || {
        ACTION=none
        die 4 'Docker does not answer; recovery tries again within a minute'
    }
    if is_as_left "$status" "$since"; then
        close_window || exit "$?"
    else
        log "recovery: somebody has stopped, started or replaced the tracker since;" \
            "leaving it as it is"
        remove_marker
    fi
    ACTION=none RUN=''
}

# is_as_left STATUS START: whether the tracker is as the dead run left it. A Docker call of that run
# may still be in progress, so a running tracker can stop at any moment.
is_as_left() {
    [[ $2 == "$STARTED_AT" ]] || return 1
    case $ACTION-$1 in
        stop-exited | stop-running | pause-paused | pause-running) ;;
        pause-exited) ! was_stopped_by_somebody ;;
        *) return 1 ;;
    esac
}

# A paused tracker that is now exited has two explanations. If dockerd died of SIGKILL, Docker was
# started after the window opened. If somebody stopped the tracker, Docker has an event of it.
was_stopped_by_somebody() {
    local events
    [[ ! $DOCKER_PID_FILE -nt $MARKER ]] || return 1
    events=$(docker_call "$DOCKER_SECONDS" events --since "${WINDOW_OPENED%??????}" \
        --until "$EPOCHREALTIME" --filter "container=$TRACKER" --filter event=stop \
        --filter event=kill --format '{{.Action}}')
    [[ -n $events ]]
}

# ---------------------------------------------------------------- after the window

finish() {
    fault_point beginning-to-finish
    in_container "$WORK_SECONDS" finish
    record_success
    push
}

# Makes the remote copy. If it fails, the backup is published all the same, and the next run copies
# it.
push() {
    local status=0 message
    timeout --kill-after=60 "$WORK_SECONDS" "$TOOL" push --in-run </dev/null >"$PUSH_OUTPUT" 2>&1 \
        9>&- 8<&- &
    CHILD=$!
    wait "$CHILD" || status=$?
    cat -- "$PUSH_OUTPUT"
    message=$(tail -n 1 -- "$PUSH_OUTPUT" | sed 's/^error: //')
    ((status == 0)) || die 1 "the backup was published, but $message"
}

on_exit() {
    local code=$1
    trap '' HUP INT TERM
    trap - ERR EXIT
    set +e
    restart_stack
    ((code == 4)) || close_window || code=4
    [[ -z $CHILD ]] || kill "$CHILD" 2>/dev/null
    remove_container
    restart_stack                       # Docker may have died at the last call
    # Without the lock, these files belong to another run.
    [[ -z $WORK ]] || rm -f -- "$COMPOSE_OUTPUT" "$PUSH_OUTPUT"
    end_run "$code"
}

remove_container() {
    [[ -n $CONTAINER ]] || return 0
    fault_point removing-the-container
    # With cgroup v1, a frozen process does not die of SIGKILL.
    [[ $PROVING == no ]] || docker_call "$DOCKER_SECONDS" unpause "$CONTAINER" >/dev/null 2>&1
    docker_call "$DOCKER_SECONDS" rm --force "$CONTAINER" >/dev/null 2>&1
}

run() {
    local room=()
    trap_signals
    [[ ! -e $MARKER ]] || recover
    [[ $RECOVER == no ]] || return 0
    load_config
    remember_stack
    begin_run
    remove_leftovers
    check docker
    find_tracker
    check deployment
    require_image
    start_container
    prove_pause
    [[ $DRY_RUN == yes || ! $QUIESCE =~ ^(stop|pause)$ ]] || room=(room)
    fault_point preflight
    in_container "$PREFLIGHT_SECONDS" preflight "$(method)" "${room[@]}"
    if [[ $DRY_RUN == yes ]]; then
        log "dry run: everything is ready; would now $QUIESCE the tracker, capture," \
            "and publish to $DESTINATION"
        return
    fi
    # Ask again, because making the image can take half an hour.
    [[ $QUIESCE == left-* ]] || find_tracker
    open_window
    capture
    close_window || exit "$?"
    check_tracker_was_unchanged
    finish
}

main() {
    parse_arguments "$@"
    [[ $RECOVER == no || -e $MARKER || -e $RESTORE ]] || exit 0
    open_log
    trap 'on_exit "$?"' EXIT
    [[ ! -e $HOLD ]] || die 3 "held: nothing is done while $HOLD is there"
    [[ ! -e $RESTORE ]] || "$TOOL" rollback \
        || die 4 'a restore that died could not be rolled back; see the lines above'
    [[ $RECOVER == no || -e $MARKER ]] || exit 0
    take_lock
    [[ ! -e $RESTORE ]] || die 4 "a restore died and is still to be rolled back: $RESTORE"
    run
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
