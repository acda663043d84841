#!/usr/bin/env bats
# maintenance-backup.sh as a process: what it asks of Docker, in which order, and what it never
# asks.

# shellcheck disable=SC2016 # hooks are expanded by the stub that sources them
# Every test is a subshell of its own; make_host gives it its variables.
# shellcheck disable=SC2030,SC2031,SC2153,SC2154
bats_require_minimum_version 1.5.0

setup() {
    load helpers
    make_host
}

teardown() {
    if [[ -n ${PID-} ]] && ! gone "$PID"; then kill -KILL -- "-$PID" || true; fi
}

# ---------------------------------------------------------------- options and configuration

@test "--help tells options and exit codes and touches nothing" {
    maintenance --help
    ends_with_status 0
    output_has --dry-run
    output_has --force
    output_has '75 another run holds the lock'
    output_lacks 'set -E'
    [[ ! -s $CALLS && ! -e $LOG ]]
}

@test "an unknown option ends with 2 before anything is done" {
    maintenance --froce
    ends_with_status 2
    output_has --froce
    output_has --help
    [[ ! -s $CALLS && ! -e $STATE/lock ]]
}

@test "a configuration that is not there ends with 2 and says what to do" {
    rm "$CONFIG"
    maintenance
    ends_with_status 2
    output_has "$CONFIG"
    output_has 'install the bundle again'
    [[ ! -s $CALLS ]]
}

@test "every setting that is missing or empty is named, with 2" {
    local key
    cp "$CONFIG" "$CONFIG.whole"
    for key in ENVIRONMENT DEPLOY_DIR DESTINATION STRATEGY QUIESCE STOP_TIMEOUT_SECONDS \
        WINDOW_TIMEOUT_SECONDS IMAGE IMAGE_SOURCE; do
        grep -v "^$key=" "$CONFIG.whole" >"$CONFIG"
        maintenance
        ends_with_status 2
        output_has "$key"
        cp "$CONFIG.whole" "$CONFIG"
        configure "$key" ''
        maintenance
        ends_with_status 2
        output_has "$key"
    done
    [[ ! -s $CALLS ]]
}

@test "a setting is not taken from the environment" {
    sed -i /QUIESCE/d "$CONFIG"
    QUIESCE=none maintenance
    ends_with_status 2
    output_has QUIESCE
}

@test "a misspelt setting ends with 2, with what is allowed" {
    local pair
    cp "$CONFIG" "$CONFIG.whole"
    for pair in QUIESCE=Stop QUIESCE=off STRATEGY=sidecar STOP_TIMEOUT_SECONDS=10s \
        WINDOW_TIMEOUT_SECONDS=-1; do
        cp "$CONFIG.whole" "$CONFIG"
        configure "${pair%=*}" "${pair#*=}"
        maintenance
        ends_with_status 2
        output_has "$CONFIG"
    done
    [[ ! -s $CALLS ]]
}

# ---------------------------------------------------------------- the lock

@test "a lock that somebody holds ends with 75 in time, and nothing was done" {
    local started=$SECONDS
    exec {held}>"$STATE/lock"
    flock "$held"
    maintenance
    ends_with_status 75
    ((SECONDS - started <= 4)) || fail 'it waited too long'
    [[ ! -s $CALLS ]]
    nothing_was_recorded
}

has_lock_open() {
    local descriptor
    for descriptor in "/proc/$PID/fd"/*; do [[ ! $descriptor -ef $STATE/lock ]] || return 0; done
    return 1
}

@test "a lock that is released while waiting is taken" {
    export TRACKER_BACKUP_LOCK_SECONDS=20
    exec {held}>"$STATE/lock"
    flock "$held"
    start_run {held}>&-
    wait_until 10 has_lock_open
    exec {held}>&-
    finished
    ends_with_status 0
}

@test "TERM while waiting for the lock ends with 143" {
    export TRACKER_BACKUP_LOCK_SECONDS=20
    exec {held}>"$STATE/lock"
    flock "$held"
    start_run {held}>&-
    wait_until 10 has_lock_open
    kill -TERM "$PID"
    finished
    ends_with_status 143
    [[ ! -s $CALLS ]]
}

# The child goes on hanging: what would hold the lock is a descriptor that it, or a subshell above
# it, has inherited.
lock_is_free_after_killing_in() {
    on "$1" 'touch "$STUB/hanging"; echo $$ >"$STUB/child"; sleep 30'
    start_run
    wait_until 10 test -s "$STUB/child"
    kill -KILL "$PID"
    wait_until 3 flock --nonblock "$STATE/lock" true \
        || { status=held; fail "the lock is held after the script died in $1"; }
    kill "$(<"$STUB/child")"
}

@test "the lock is free when the script dies while a capture hangs" {
    lock_is_free_after_killing_in capture
}

@test "the lock is free when the script dies while a stop hangs" {
    lock_is_free_after_killing_in stop
}

@test "the lock is free when the script dies while Docker does not list its containers" {
    lock_is_free_after_killing_in ps
}

@test "the lock is free when the script dies while Docker does not inspect the tracker" {
    lock_is_free_after_killing_in inspect
}

@test "the lock is free when the script dies while Compose hangs" {
    lock_is_free_after_killing_in config
}

@test "the next run after a killed one succeeds and removes what it left" {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    [[ -n $(ls "$STAGING") ]]
    rm "$STUB/hooks/capture"
    maintenance
    ends_with_status 0
    tracker_is running
    nothing_is_left
    [[ $(published | wc -l) == 2 ]]
}

# ---------------------------------------------------------------- a tracker that does not run

@test "a tracker that is not running is skipped with 3 and never started" {
    local state
    for state in exited created paused restarting dead; do
        printf '%s' "$state" >"$STUB/tracker/status"
        maintenance
        ends_with_status 3
        output_has "$state"
        output_has --force
        tracker_is "$state"
    done
    tracker_was_left_alone
    nothing_was_published
    nothing_was_recorded
    nothing_is_left
}

@test "a tracker that is not there is skipped with 3" {
    touch "$STUB/tracker/removed"
    maintenance
    ends_with_status 3
    output_has missing
    tracker_was_left_alone
    nothing_was_recorded
}

@test "--force backs up a tracker that is stopped, and does not start it" {
    printf exited >"$STUB/tracker/status"
    maintenance --force
    ends_with_status 0
    tracker_is exited
    tracker_was_left_alone
    recorded result=success 'warning=.*exited.*'
    was_called '^docker exec .* capture [0-9_]* copy$'
}

@test "--force backs up a tracker that is paused, and does not unpause it" {
    printf paused >"$STUB/tracker/status"
    maintenance --force
    ends_with_status 0
    tracker_is paused
    tracker_was_left_alone
}

@test "--force backs up although there is no tracker at all" {
    touch "$STUB/tracker/removed"
    maintenance --force
    ends_with_status 0
    recorded result=success
}

@test "--force does not start a stopped tracker when the backup fails either" {
    printf exited >"$STUB/tracker/status"
    on capture 'exit 1'
    maintenance --force
    ends_with_status 1
    tracker_was_left_alone
}

@test "--force quiesces a tracker that runs as any run does" {
    maintenance --force
    ends_with_status 0
    called_in_order '^docker stop' '^docker start'
}

@test "a tracker of another deploy directory is not this one's" {
    on ps 'case $* in *service=tracker*) echo "0ther /srv/other"; exit 0 ;; esac'
    maintenance
    ends_with_status 3
    tracker_was_left_alone
}

@test "two trackers in one deploy directory are refused before either is touched" {
    on ps 'case $* in
        *service=tracker*) echo "7e57 $STUB_DEPLOY"; echo "7e58 $STUB_DEPLOY"; exit 0 ;;
    esac'
    maintenance
    ends_with_status 1
    output_has 'more than one'
    tracker_was_left_alone
}

# ---------------------------------------------------------------- a dry run

@test "--dry-run checks everything and touches nothing" {
    local before
    before=$(find "$STUB_DESTINATION" "$STUB_DEPLOY" -type f)
    maintenance --dry-run
    ends_with_status 0
    output_has 'would now stop the tracker'
    tracker_was_left_alone
    was_called '^docker exec .* preflight [0-9_]* copy$'
    never_called '^docker exec .* \(capture\|finish\) '
    nothing_was_recorded
    nothing_is_left
    [[ $(find "$STUB_DESTINATION" "$STUB_DEPLOY" -type f) == "$before" ]]
}

@test "--dry-run builds no image that is missing" {
    : >"$STUB/images"
    maintenance --dry-run
    ends_with_status 0
    output_has "$IMAGE is missing"
    never_called '^docker build'
    tracker_was_left_alone
}

@test "--dry-run that finds something wrong fails and records nothing" {
    on preflight 'echo "no space" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance --dry-run
    ends_with_status 1
    output_has 'no space'
    nothing_was_recorded
    nothing_is_left
}

# ---------------------------------------------------------------- a run

@test "stop: preflight, stop, capture, start, and only then the slow rest" {
    maintenance
    ends_with_status 0
    called_in_order '^docker compose .* config ' '^docker compose .* run ' \
        '^docker exec .* preflight [0-9_]+ copy room$' \
        '^docker stop -t 1 7e57$' '^docker exec .* capture [0-9_]+ copy$' '^docker start 7e57$' \
            '^docker exec .* finish ' \
        '^docker rm --force tracker-backup-'
    never_called '^docker \(pause\|unpause\|restart\|kill\)'
    never_called '^without a time limit'
    tracker_is running
    recorded result=success exit_code=0 quiesce=stop
    nothing_is_left
    [[ ! -e $STATE/window ]]
}

@test "pause: the tracker is paused and unpaused, never stopped or started" {
    local since
    since=$(<"$STUB/tracker/started")
    configure QUIESCE pause
    maintenance
    ends_with_status 0
    called_in_order '^docker exec .* preflight [0-9_]+ copy room$' '^docker pause 7e57$' \
        '^docker exec .* capture [0-9_]+ copy$' \
        '^docker unpause 7e57$' '^docker exec .* finish '
    never_called '^docker \(stop\|start\|restart\|kill\) '
    [[ $(<"$STUB/tracker/started") == "$since" ]]
    recorded result=success quiesce=pause
}

@test "none: the tracker is not touched and the capture is online" {
    configure QUIESCE none
    maintenance
    ends_with_status 0
    called_in_order '^docker exec .* preflight [0-9_]+ online$' \
        '^docker exec .* capture [0-9_]+ online$' '^docker exec .* finish '
    tracker_was_left_alone
    recorded result=success quiesce=none window_seconds=0
}

@test "a broken compose file in the window cannot keep the tracker down" {
    on capture 'printf broken >"$STUB_DEPLOY/docker-compose.yml"
        printf broken >"$STUB_DEPLOY/.env"
        touch "$STUB/broken"'
    on config '[[ ! -e $STUB/broken ]] || exit 1'
    maintenance
    ends_with_status 0
    tracker_is running
    ! sed -n '/^docker stop/,/^docker start/p' "$CALLS" | grep '^docker compose' \
        || fail 'a compose call inside the window'
}

@test "while the tracker is paused, Docker gets one exec and one inspect" {
    configure QUIESCE pause
    maintenance
    ends_with_status 0
    # The stream of events began before; the stub may write it down later.
    [[ $(sed -n '/^docker pause 7e57/,/^docker unpause/p' "$CALLS" | grep -v '^docker events' \
        | cut -d ' ' -f 1-2) == \
        $'docker pause\ndocker exec\ndocker inspect\ndocker unpause' ]] \
        || fail "$(sed -n '/^docker pause 7e57/,/^docker unpause/p' "$CALLS")"
}

@test "a tracker that was restarted while the run was prepared is backed up as it is now" {
    on preflight started
    maintenance
    ends_with_status 0
    tracker_is running
    recorded result=success
}

@test "a tracker that was stopped during the preflight stays stopped; the run is skipped" {
    on preflight 'stopped 0'
    maintenance
    ends_with_status 3
    tracker_was_left_alone
    nothing_is_left
}

@test "the backup container is started from both files, with no dependency, under this run's name" {
    maintenance
    was_called \
        "^docker compose .*--project-directory $STUB_DEPLOY "
    was_called "--file $STUB_DEPLOY/docker-compose.yml --file "
    was_called " --file $STUB_DEPLOY/docker-compose.backup.yml"
    was_called '^docker compose .* run .*--no-deps .*--name tracker-backup-[0-9]*_[0-9]* .*backup$'
    was_called '^docker compose --project-name torrust '
    never_called '^docker compose .* \(up\|start\|stop\|down\)'
}

@test "what runs in the container and what is recorded carry one and the same run id" {
    maintenance
    local id
    id=$(basename "$STUB_DESTINATION"/runs/*.json .json)
    [[ $id =~ ^[0-9]{8}_[0-9]{6}$ ]]
    was_called "^docker exec tracker-backup-$id /usr/local/bin/backup.sh capture $id "
    recorded "id=$id"
}

@test "a stop that ended in a kill is told in the log" {
    maintenance
    output_has 'was killed'
}

@test "a stop that ended by itself is not called a kill" {
    on stop 'stopped 0; exit 0'
    maintenance
    ends_with_status 0
    output_lacks 'was killed'
}

@test "an id that is taken waits for the next second" {
    local now taken id
    now=$(date +%s)
    for taken in "$now" "$((now + 1))"; do touch \
        "$STUB_DESTINATION/config/config_$(date -u -d "@$taken" +%Y%m%d_%H%M%S).tar.zst"; done
    maintenance
    ends_with_status 0
    id=$(basename "$STUB_DESTINATION"/runs/*.json .json)
    [[ $id > $(date -u -d "@$((now + 1))" +%Y%m%d_%H%M%S) ]] || fail "the id $id was taken"
    [[ $(published | wc -l) == 4 ]]
}

@test "old backups that cannot be removed are a warning, not a failed backup" {
    sed -i /RETENTION/d "$STUB_DEPLOY/backup/backup.conf"
    maintenance
    ends_with_status 0
    output_has 'old backups could not be removed'
    recorded result=success
    [[ $(published | wc -l) == 2 ]]
}

# ---------------------------------------------------------------- before the window

@test "an image that is missing is built before the tracker is touched" {
    : >"$STUB/images"
    maintenance
    ends_with_status 0
    called_in_order "^docker build .*--tag $IMAGE $STUB_DEPLOY/backup$" '^docker compose .* run ' \
        '^docker stop '
    never_called '^docker pull'
}

@test "an image that is missing and comes from a registry is pulled before the tracker is touched" {
    configure IMAGE_SOURCE pull
    : >"$STUB/images"
    maintenance
    ends_with_status 0
    called_in_order "^docker pull $IMAGE$" '^docker stop '
    never_called '^docker build'
}

@test "an image that cannot be built fails the run before the tracker is touched" {
    : >"$STUB/images"
    on build 'echo "no route to host" >&2; exit 1'
    maintenance
    ends_with_status 1
    output_has 'no route to host'
    tracker_was_left_alone
    recorded result=failed exit_code=1 'reason=.*image.*'
}

@test "an image that is there is neither built nor pulled" {
    maintenance
    never_called '^docker \(build\|pull\)'
}

@test "a destination that hangs fails the run with what it was of" {
    export TRACKER_BACKUP_DOCKER_SECONDS=1
    rm "$STUB_DESTINATION/.tracker-backup.json"
    mkfifo "$STUB_DESTINATION/.tracker-backup.json"
    maintenance
    ends_with_status 1
    output_has 'checking the destination was not over after'
    tracker_was_left_alone
    nothing_was_recorded
}

# dead_restore: one that is rolled back but for the end.
dead_restore() {
    printf '%s' '{"run": "20260101_030000", "work": "20260101_030000.restore", "fresh": false,' \
        ' "config": false, "running": [], "undone": true}' >"$STATE/restore.json"
}

# Another may be rolling it back, and fail: what it needs must still be there.
@test "no run begins, nor removes anything, while a restore that died is still to be rolled back" {
    dead_restore
    mkdir "$STAGING/20260101_030000.restore"
    # Another restore holds the lock until the run waits for it.
    exec {held}>"$STATE/lock"
    flock "$held"
    export TRACKER_BACKUP_LOCK_SECONDS=20
    start_run {held}>&-
    wait_until 10 has_lock_open
    sleep 0.3
    exec {held}>&-
    finished
    ends_with_status 4
    output_has 'still to be rolled back'
    [[ -d $STAGING/20260101_030000.restore ]]
    tracker_was_left_alone
    nothing_was_recorded
}

@test "a restore that died is rolled back before a run begins" {
    dead_restore
    maintenance
    ends_with_status 0
    [[ ! -e $STATE/restore.json ]]
    was_called '^docker stop '
}

@test "what Compose repeats of a broken .env does not get into the log" {
    on run 'printf "%s\n" "level=warning msg=The \"hidden-word\" variable is not set." \
        "failed to read /opt/.env: line 7: unterminated quoted value '"'"'hidden-word" \
        "hidden-word=x" >&2
        exit 1'
    maintenance
    ends_with_status 1
    output_has '.env: line 7: unterminated quoted value'
    output_lacks hidden-word
    tracker_was_left_alone
}

@test "a destination that is not ours fails the run, and nothing is written there" {
    sed -i s/5ca1ab1e/0ther/ "$STUB_DESTINATION/.tracker-backup.json"
    maintenance
    ends_with_status 1
    output_has 'belongs to another machine'
    tracker_was_left_alone
    nothing_was_recorded
    nothing_was_published
}

@test "Docker that is not fit fails the run before the tracker is touched" {
    printf '2.20\n' >"$STUB/compose-version"
    maintenance
    ends_with_status 1
    tracker_was_left_alone
    recorded result=failed 'reason=docker compose is 2.20; .*'
}

@test "a failed preflight leaves the tracker alone and tells why" {
    on preflight \
        'echo "the database is empty (0 bytes)" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance
    ends_with_status 1
    output_has 'the database is empty (0 bytes)'
    tracker_was_left_alone
    recorded result=failed exit_code=1 'reason=the database is empty (0 bytes)'
    nothing_is_left
}

@test "a configuration error that the container finds ends with 2" {
    on preflight \
        'echo "BACKUP_MODE is missing" >"$STUB_STAGING/$5/reason"; exit 2'
    maintenance
    ends_with_status 2
    tracker_was_left_alone
    recorded result=failed exit_code=2 'reason=BACKUP_MODE is missing'
}

@test "a container that cannot be started fails the run before the tracker is touched" {
    on run 'echo "yaml: line 3: mapping values are not allowed" >&2; exit 1'
    maintenance
    ends_with_status 1
    output_has 'mapping values are not allowed'
    tracker_was_left_alone
    recorded result=failed
    nothing_is_left
}

@test "Docker that does not answer fails the run within its time limit" {
    export TRACKER_BACKUP_DOCKER_SECONDS=1
    on ps 'exec sleep 30'
    maintenance
    ends_with_status 1
    output_has 'docker ps did not answer within 1 s'
    tracker_was_left_alone
}

@test "what dead runs left is removed: containers, staging, partial files" {
    local left=20250101_030000
    printf '%s\n' "tracker-backup-$left" >"$STUB/containers"
    mkdir "$STAGING/$left"
    touch "$STAGING/$left/database.db" "$STUB_DESTINATION/sqlite/sqlite_$left.db.gz.partial" \
        "$STUB_DESTINATION/runs/$left.json.partial"
    maintenance
    ends_with_status 0
    was_called "^docker rm --force tracker-backup-$left$"
    nothing_is_left
    [[ -z $(find "$STUB_DESTINATION" -name '*.partial') ]] \
        || fail "left: $(find "$STUB_DESTINATION" -name '*.partial')"
    recorded "warning=.*$left.*"
}

@test "nothing with a final name is removed, and nothing of a stranger's" {
    local name kept=()
    for name in sqlite/sqlite_20250101_030000.db.gz config/config_20250101_030000.tar.gz \
        mysql/mysql_20250101_030000.sql.zst \
        runs/20250101_030000.json .tracker-backup.json notes.partial sqlite/upload.partial; do
        printf '%s\n' "$name" >"$STUB_DESTINATION/$name"
        kept+=("$STUB_DESTINATION/$name")
    done
    mkdir "$STAGING/mine"
    kept+=("$STAGING/mine")
    on finish 'exit 1'
    maintenance
    ends_with_status 1
    for name in "${kept[@]}"; do [[ -e $name ]] || fail "removed: $name"; done
}

# ---------------------------------------------------------------- failures inside the window

@test "a failed capture brings the tracker back, ends with 1 and publishes nothing" {
    on capture 'echo "disk quota exceeded" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance
    ends_with_status 1
    called_in_order '^docker stop' '^docker exec .* capture ' '^docker start 7e57$'
    never_called '^docker exec .* finish '
    tracker_is running
    recorded result=failed exit_code=1 'reason=disk quota exceeded'
    nothing_was_published
    nothing_is_left
    [[ ! -e $STATE/window ]]
}

@test "a failed capture unpauses a paused tracker" {
    configure QUIESCE pause
    on capture 'exit 1'
    maintenance
    ends_with_status 1
    called_in_order '^docker pause' '^docker unpause'
    never_called '^docker start'
    tracker_is running
}

@test "a failed online capture leaves the tracker alone" {
    configure QUIESCE none
    on capture 'exit 1'
    maintenance
    ends_with_status 1
    tracker_was_left_alone
    recorded result=failed
}

@test "a capture that is not over in time is ended, and the tracker comes back" {
    local started=$SECONDS
    configure WINDOW_TIMEOUT_SECONDS 2
    on capture 'exec sleep 60'
    maintenance
    ends_with_status 1
    ((SECONDS - started <= 6)) || fail 'the window was open for too long'
    output_has 'time limit'
    tracker_is running
    called_in_order '^docker start 7e57$' '^docker rm --force tracker-backup-'
    recorded result=failed
    nothing_was_published
}

@test "stopping and capturing have two thirds of the window" {
    configure WINDOW_TIMEOUT_SECONDS 6
    on capture 'exec sleep 60'
    maintenance
    ends_with_status 1
    [[ $output == *'the capture step was not over after its time limit of '[34]' s'* ]] \
        || fail 'another limit'
}

@test "what comes before the window has a time limit of its own" {
    export TRACKER_BACKUP_PREFLIGHT_SECONDS=1
    on preflight 'exec sleep 60'
    maintenance
    ends_with_status 1
    output_has 'the preflight step was not over after its time limit of 1 s'
    tracker_was_left_alone
}

@test "a run that hangs is left to the recovery early enough for a window of 300 s" {
    local opened deadline
    configure WINDOW_TIMEOUT_SECONDS 300
    on stop 'cp "$TRACKER_BACKUP_STATE_DIR/window" "$STUB/marker"'
    maintenance
    read -r opened deadline < <(python3 -c 'import json, sys
marker = json.load(sys.stdin)
print(marker["opened"], marker["deadline"])' <"$STUB/marker")
    ((deadline - opened >= 200 && deadline - opened + 60 < 300)) \
        || fail "deadline $((deadline - opened)) s after the window was opened"
}

@test "a stop that took the whole window leaves no capture to begin" {
    configure WINDOW_TIMEOUT_SECONDS 2
    on stop 'sleep 1.1'
    maintenance
    ends_with_status 1
    never_called '^docker exec .* capture '
    tracker_is running
}

@test "a stop that fails leaves a running tracker" {
    no_waiting
    on stop 'exit 1'
    maintenance
    ends_with_status 1
    output_has 'could not be stopped'
    never_called '^docker exec .* capture '
    tracker_is running
    [[ ! -e $STATE/window ]]
}

@test "a pause that fails leaves a running tracker" {
    configure QUIESCE pause
    on pause 'exit 1'
    maintenance
    ends_with_status 1
    never_called '^docker exec .* capture '
    tracker_is running
}

# changed_during_capture BASH: the capture itself goes well, but its copy is torn.
changed_during_capture() {
    on capture "$1"
    maintenance
    ends_with_status 1
    output_has 'changed during the capture'
    nothing_was_published
    recorded result=failed 'reason=.*changed during the capture.*'
    never_called '^docker exec .* finish '
    nothing_is_left
}

@test "a tracker that somebody started during the capture fails the run" {
    changed_during_capture started
    tracker_is running
}

@test "a tracker that somebody started and stopped again during the capture fails the run" {
    changed_during_capture 'started; stopped 0'
    tracker_is running
}

@test "a tracker that somebody unpaused during the capture fails the run" {
    configure QUIESCE pause
    changed_during_capture 'become running'
    tracker_is running
}

@test "a tracker that somebody unpaused and paused again fails the run" {
    configure QUIESCE pause
    changed_during_capture 'event unpause'
    tracker_is running
}

@test "a paused tracker that somebody stopped during the capture fails the run and stays stopped" {
    configure QUIESCE pause
    changed_during_capture 'stopped 0; echo stop >"$STUB/events"'
    tracker_is exited
    never_called '^docker \(start\|unpause\) 7e57'
    output_has 'stopped by somebody'
    [[ ! -e $STATE/window ]]
}

@test "when Docker does not tell what happened during the capture the copy is discarded" {
    on events 'exit 1'
    maintenance
    ends_with_status 1
    output_has 'Docker does not say'
    nothing_was_published
    tracker_is running
}

@test "a tracker that somebody replaced during the capture fails the run and is left alone" {
    changed_during_capture 'printf 5e7e >"$STUB/tracker/id"; started'
    never_called 'docker \(start\|stop\|unpause\) 5e7e'
    tracker_is running
}

@test "a tracker that somebody removed during the capture fails the run with 1" {
    changed_during_capture 'touch "$STUB/tracker/removed"'
    never_called '^docker start'
}

@test "a second container of the tracker that somebody started during the capture fails the run" {
    changed_during_capture \
        'printf "%s\n" "case \$* in *service=tracker*)" \
            "echo \"7e57 \$STUB_DEPLOY\"; echo \"5e7e \$STUB_DEPLOY\"; exit 0 ;; esac" \
            >"$STUB/hooks/ps"'
    tracker_is running
}

@test "a tracker that was started during a forced capture fails the run" {
    printf exited >"$STUB/tracker/status"
    on capture started
    maintenance --force
    ends_with_status 1
    output_has 'changed during the capture'
    nothing_was_published
}

@test "a tracker that cannot be started ends with 4 and says how" {
    no_waiting
    on start 'echo "port is already allocated" >&2; exit 1'
    maintenance
    ends_with_status 4
    output_has 'port is already allocated'
    output_has 'docker start 7e57'
    recorded result=failed exit_code=4
    nothing_was_published
    nothing_is_left
}

# docker_hangs: from the capture on, Docker answers nothing any more.
docker_hangs() {
    local event
    export TRACKER_BACKUP_DOCKER_SECONDS=1 TRACKER_BACKUP_BRING_BACK_SECONDS=1
    for event in ps inspect start unpause rm; do on "$event" \
        '[[ ! -e $STUB/hanging ]] || exec sleep 60'; done
    on capture 'touch "$STUB/hanging"'
}

@test "when Docker does not answer any more the run ends with 4 and leaves the marker" {
    docker_hangs
    maintenance
    ends_with_status 4
    output_has 'could not be brought back (docker start 7e57)'
    output_lacks 'before that'
    [[ -e $STATE/window ]]
    nothing_was_published
    maintenance --recover
    ends_with_status 4
    output_has 'Docker does not answer'
    [[ -e $STATE/window ]]
    rm "$STUB/hanging"
    maintenance --recover
    ends_with_status 0
    tracker_is running
    [[ ! -e $STATE/window ]]
}

@test "a capture that failed and a tracker that cannot be started: 4, with both reasons" {
    no_waiting
    on capture 'echo "disk quota exceeded" >"$STUB_STAGING/$5/reason"; exit 1'
    on start 'exit 1'
    maintenance
    ends_with_status 4
    output_has 'disk quota exceeded'
    output_has 'docker start 7e57'
}

@test "a start that fails at first is tried again" {
    no_waiting
    on start '[[ -e $STUB/tried ]] || { touch "$STUB/tried"; exit 1; }'
    maintenance
    ends_with_status 0
    tracker_is running
    recorded result=success
}

@test "a tracker that does not stay up after the window ends with 4" {
    export TRACKER_BACKUP_STEADY_SECONDS=0.5
    on start 'started; (sleep 0.1; stopped 1) >/dev/null 2>&1 & exit 0'
    maintenance
    ends_with_status 4
    output_has 'docker logs 7e57'
    nothing_was_published
}

@test "a paused tracker that a dying Docker left exited is started" {
    configure QUIESCE pause
    on capture 'stopped 137; exit 1'
    maintenance
    ends_with_status 1
    tracker_is running
    was_called '^docker start 7e57'
}

@test "what a Docker that dies at the last call of a run takes down is started" {
    echo 1 >"$STUB/docker.pid"
    on rm 'echo 2 >"$STUB/docker.pid"; stopped 137; fail "the daemon is gone"'
    maintenance
    ends_with_status 0
    called_in_order '^docker start 7e57$' '^docker rm ' '^docker start 7e57$'
    tracker_is running
    [[ $(grep -c 'Docker has died during this run' <<<"$output") == 1 ]]
}

# Docker that is killed starts nothing again that is to run `unless-stopped`.
@test "what a Docker that died during a run took down is started, outside the window too" {
    echo 1 >"$STUB/docker.pid"
    on preflight 'echo 2 >"$STUB/docker.pid"; stopped 137; fail "the daemon is gone"'
    maintenance
    ends_with_status 1
    called_in_order '^docker exec .* preflight ' '^docker start 7e57$'
    never_called '^docker stop'
    tracker_is running
    [[ $output == *'Docker has died during this run'* ]]
}

@test "a stopped tracker that somebody left paused is unpaused" {
    on capture 'become paused; exit 1'
    maintenance
    ends_with_status 1
    tracker_is running
}

# ---------------------------------------------------------------- failures after the window

@test "a failed finish ends with 1, with the tracker long back and nothing under a final name" {
    on finish \
        'backup_step finish "$5"
        echo "integrity_check found: malformed" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance
    ends_with_status 1
    called_in_order '^docker start' '^docker exec .* finish '
    recorded result=failed 'reason=integrity_check found: malformed'
    nothing_was_published
    nothing_is_left
}

@test "a run manifest that cannot be written fails the run, and its files go" {
    on finish 'touch "$STUB/finished"'
    on ps '[[ ! -e $STUB/finished ]] || exit 1'
    maintenance
    ends_with_status 1
    nothing_was_published
    recorded result=failed
}

@test "a run manifest that says success does not outlive the files of its run" {
    on finish 'touch "$STUB_DESTINATION/runs/$5.json"; mkdir "$STUB_DESTINATION/runs/$5.json.partial"'
    maintenance
    ends_with_status 1
    nothing_was_published
    output_has 'could not be recorded'
    [[ -z $(find "$STUB_DESTINATION/runs" -name '*.json') ]] || fail 'a run manifest is left'
}

@test "an old backup is removed after a run, and not after a failed one" {
    old_backup
    on finish 'exit 1'
    maintenance
    [[ -n $(find "$STUB_DESTINATION" -path "$OLD*") ]] || fail 'it was removed'
    rm "$STUB/hooks/finish"
    maintenance
    ends_with_status 0
    [[ -z $(find "$STUB_DESTINATION" -path "$OLD*") ]] || fail 'it is still there'
}

@test "a reason of several lines stays one line of the run manifest" {
    on preflight 'printf "one\ntwo=2\n" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance
    recorded 'reason=one two=2'
}

# ---------------------------------------------------------------- what a container writes

# answers STEP BASH: what a taken-over container does in staging, as root, while STEP runs.
answers() { on "$1" "cd \"\$STUB_STAGING/\$5\"; backup_step $1 \"\$5\"; $2"; }

# The run failed, said this, executed nothing, and left the tracker running.
failed_safely() {
    ends_with_status 1
    output_has "$1"
    tracker_is running
    nothing_was_published
    nothing_is_left
    [[ ! -e $BATS_TEST_TMPDIR/pwned ]] || fail 'the command of the container was executed'
}

@test "an exit code that is an expression is not evaluated" {
    local code
    for code in "BASH_VERSINFO[\$(touch $BATS_TEST_TMPDIR/pwned)0]*0" 'RANDOM*0' '0 ' '-1' 1e3 0x0 \
        0000 $'0\n0' ''$'\n' 'a[0]'; do
        rm -f "$STUB_DESTINATION"/runs/*
        printf '%s' "$code" >"$STUB/code"
        answers capture 'cat "$STUB/code" >ended'
        maintenance
        failed_safely 'the capture step left an exit code that is no number'
    done
}

@test "an exit code with leading zeros is decimal" {
    answers capture 'printf 008 >ended'
    maintenance
    failed_safely 'the capture step failed with exit code 8'
}

@test "a link, a pipe, a directory or a second name in place of the exit code is not followed" {
    local plant
    printf 0 >"$STUB/zero"
    for plant in 'ln -s "$STUB/zero" ended' 'mkfifo ended' 'mkdir ended' 'ln "$STUB/zero" ended' \
        'ln -s /dev/zero ended'; do
        rm -f "$STUB_DESTINATION"/runs/*
        answers capture "$plant"
        SECONDS=0
        maintenance
        failed_safely 'the capture step left an exit code that is no number'
        ((SECONDS < 15)) || fail 'the host waited for it'
    done
    [[ $(<"$STUB/zero") == 0 ]]
}

@test "a link or a pipe in place of the reason is not followed" {
    local plant
    printf 'a secret of the host\n' >"$STUB/secret"
    for plant in 'ln -s "$STUB/secret" reason' 'mkfifo reason' 'ln "$STUB/secret" reason'; do
        rm -f "$STUB_DESTINATION"/runs/*
        answers capture "$plant; printf 1 >ended; exit 1"
        maintenance
        failed_safely 'the capture step failed with exit code 1, and its reason is no regular file'
        output_lacks 'a secret of the host'
    done
}

@test "the run's directory that the container replaced by a link is not followed" {
    mkdir "$STUB/other"
    printf 'a secret of the host\n' >"$STUB/other/reason"
    printf '1\n' >"$STUB/other/ended"
    answers capture 'mv "$STUB_STAGING/$5" "$STUB_STAGING/aside"
        ln -s "$STUB/other" "$STUB_STAGING/$5"; exit 1'
    maintenance
    ends_with_status 1
    output_lacks 'a secret of the host'
    [[ $(<"$STUB/other/ended") == 1 && -e $STUB/other/reason ]] || fail 'the link was followed'
    tracker_is running
}

@test "a reason is printed without escape sequences, and its end is cut off" {
    answers capture 'printf "red \033[31m bell \a bad \377 bidi \342\200\256 good é\n" >reason
        head -c 9000000 /dev/zero | tr "\0" x >>reason; exit 1'
    maintenance
    failed_safely 'red \x1b[31m bell \x07 bad'
    output_has 'good é'
    output_lacks $'\033'
    output_lacks $'\342\200\256'
    ((${#output} < 300000)) || fail "${#output} bytes were printed"
}

@test "what the host writes during a run does not go through a link of the container" {
    printf 'kept\n' >"$STUB/victim"
    answers capture 'for name in expected-tables expected-bytes push; do
            ln -sf "$STUB/victim" "$name"; done'
    maintenance
    ends_with_status 0
    [[ $(<"$STUB/victim") == kept ]] || fail 'the link was followed'
}

@test "a damaged marker is not evaluated: the run ends with 4 and the marker stays" {
    local field
    for field in "a[\$(touch $BATS_TEST_TMPDIR/pwned)0]" '' 12x; do
        printf '7e57 2026-01-01T00:00:00Z stop %s 1 10 20260101_000000\n' "$field" >"$STATE/window"
        maintenance --recover
        ends_with_status 4
        output_has 'is damaged'
        printf '7e57 2026-01-01T00:00:00Z stop 1 %s 10 20260101_000000\n' "$field" >"$STATE/window"
        maintenance --recover
        ends_with_status 4
    done
    [[ -e $STATE/window && ! -e $BATS_TEST_TMPDIR/pwned ]]
    tracker_was_left_alone
}

# ---------------------------------------------------------------- fault points

# prepared_at NAME: a run that is to stand still at NAME, in staging that the suite prepared.
prepared_at() {
    export TRACKER_BACKUP_STOP_AT=$1
    mkdir -m 0700 "$STAGING/.fault-points"
    touch "$STAGING/.fault-points/hold"
}

@test "a fault point does nothing without the directory of the suite" {
    TRACKER_BACKUP_STOP_AT=taking-the-lock maintenance
    ends_with_status 0
    nothing_is_left
}

@test "a fault point does nothing for another name, or without the variable" {
    prepared_at no-such-step
    maintenance
    ends_with_status 0
    unset TRACKER_BACKUP_STOP_AT
    maintenance
    ends_with_status 0
    [[ -e $STAGING/.fault-points/hold && ! -e $STAGING/.fault-points/reached ]]
}

# stands_still_at NAME: the run stands still there, and goes on when the suite lets it.
stands_still_at() {
    rm -rf "$STAGING/.fault-points"
    prepared_at "$1"
    start_run
    wait_until 20 test -e "$STAGING/.fault-points/reached" || fail "never came to $1"
    sleep 0.2
    ! gone "$PID" || fail "did not stand still at $1"
    rm "$STAGING/.fault-points/hold"
    finished
    ends_with_status 0
}

@test "a run stands still at each fault point of the host, and goes on" {
    local point
    configure QUIESCE pause
    for point in taking-the-lock checking-the-destination looking-for-what-dead-runs-left \
        checking-docker checking-the-deployment looking-for-the-image starting-the-container \
        proving-pause preflight syncing-the-marker renaming-the-marker taking-the-tracker-down \
        beginning-the-capture bringing-the-tracker-back removing-the-marker \
        looking-back-at-the-window beginning-to-finish removing-the-container; do
        stands_still_at "$point"
    done
}

@test "the container gets the name of a fault point only when it is set" {
    maintenance
    never_called TRACKER_BACKUP_STOP_AT
    prepared_at elsewhere
    maintenance
    was_called '^docker exec --env TRACKER_BACKUP_STOP_AT tracker-backup-'
}

@test "the directory of the suite is no leftover of a dead run" {
    prepared_at elsewhere
    maintenance
    ends_with_status 0
    output_lacks .fault-points
    [[ -d $STAGING/.fault-points ]]
}

# ---------------------------------------------------------------- an engine that cannot pause

@test "pausing is proved on our own container before the preflight" {
    configure QUIESCE pause
    maintenance
    ends_with_status 0
    called_in_order '^docker compose .* run ' '^docker pause tracker-backup-' \
        '^docker unpause tracker-backup-' '^docker exec .* preflight ' '^docker pause 7e57$'
}

@test "pausing is not proved when the tracker is stopped, captured online, or does not run" {
    maintenance
    never_called '^docker pause'
    configure QUIESCE none
    maintenance
    never_called '^docker pause'
    configure QUIESCE pause
    printf exited >"$STUB/tracker/status"
    maintenance --force
    ends_with_status 0
    never_called '^docker pause'
}

@test "an engine that cannot pause ends the run with 2 and names stop, the tracker untouched" {
    configure QUIESCE pause
    on pause-ours 'echo "cgroups: cannot freeze" >&2; exit 1'
    maintenance
    ends_with_status 2
    output_has 'this Docker engine cannot pause containers (cgroups: cannot freeze'
    output_has "set backup.quiesce to 'stop' in the environment file, generate and install again"
    tracker_was_left_alone
    recorded result=failed exit_code=2 'reason=this Docker engine cannot pause .*'
    nothing_is_left
    maintenance --dry-run
    ends_with_status 2
    output_has 'this Docker engine cannot pause containers'
}

@test "an engine that cannot unpause ends the run with 2 before the tracker is touched" {
    configure QUIESCE pause
    on unpause-ours 'echo "cannot thaw" >&2; exit 1'
    maintenance
    ends_with_status 2
    output_has 'cannot thaw'
    tracker_was_left_alone
    was_called '^docker rm --force tracker-backup-'
}

@test "a pause that fails for a moment proves nothing yet" {
    configure QUIESCE pause
    on pause-ours '[[ -e $STUB/again ]] || { touch "$STUB/again"; exit 1; }'
    maintenance
    ends_with_status 0
}

@test "a backup container that died is no engine that cannot pause" {
    configure QUIESCE pause
    on pause-ours ': >"$STUB/containers"; echo "is not running" >&2; exit 1'
    maintenance
    ends_with_status 1
    output_has 'the backup container did not stay up (is not running'
    output_lacks 'cannot pause'
    tracker_was_left_alone
}

@test "a tracker that cannot be paused ends the run with 1 and names stop" {
    configure QUIESCE pause
    on pause 'echo "cannot freeze" >&2; exit 1'
    maintenance
    ends_with_status 1
    output_has "set backup.quiesce to 'stop'"
    tracker_is running
}

@test "a container of a dead run that is still paused is unpaused and removed" {
    printf 'tracker-backup-20250101_030000\n' | tee "$STUB/containers" >"$STUB/paused"
    maintenance
    ends_with_status 0
    called_in_order '^docker unpause tracker-backup-20250101_030000$' \
        '^docker rm --force tracker-backup-20250101_030000$'
    nothing_is_left
}

@test "TERM while our own container is paused unpauses and removes it" {
    configure QUIESCE pause
    on pause-ours 'printf "%s\n" "$2" >>"$STUB/paused"; touch "$STUB/hanging"; sleep 1; exit 0'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -TERM "$PID"
    finished
    ends_with_status 143
    called_in_order '^docker pause tracker-backup-' '^docker unpause tracker-backup-' \
        '^docker rm --force tracker-backup-'
    tracker_was_left_alone
    nothing_is_left
}

# ---------------------------------------------------------------- signals

# ended_by SIGNAL CODE EVENT [BASH]: a signal while EVENT hangs, or does this; the group gets it, as
# at a terminal.
ended_by() {
    on "$3" "touch \"\$STUB/hanging\"; ${4:-exec sleep 60}"
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill "-$1" -- "-$PID"
    finished
    ends_with_status "$2"
    tracker_is running
    nothing_was_published
    nothing_is_left
    [[ ! -e $STATE/window ]] || fail 'the marker is still there'
    recorded result=failed "exit_code=$2" 'reason=.*signal.*'
    # The terminal's signal goes to the log's `tee`, too.
    output_has "exit code $2: ended by a signal"
    grep -q "exit code $2: ended by a signal" "$LOG" || fail 'the end is not in the log'
    flock --nonblock "$STATE/lock" true
}

@test "TERM during the preflight ends with 143 and leaves the tracker alone" {
    ended_by TERM 143 preflight
    tracker_was_left_alone
}

@test "TERM during the building of the image ends with 143 and leaves the tracker alone" {
    : >"$STUB/images"
    ended_by TERM 143 build
    tracker_was_left_alone
}

@test "TERM during the capture ends with 143, the tracker back" {
    ended_by TERM 143 capture
    called_in_order '^docker stop' '^docker start 7e57$'
}

@test "TERM during the capture of a paused tracker ends with 143, the tracker unpaused" {
    configure QUIESCE pause
    ended_by TERM 143 capture
    called_in_order '^docker pause' '^docker unpause 7e57$'
}

@test "TERM during the finish ends with 143, nothing half-published" {
    ended_by TERM 143 finish
}

@test "INT during the capture ends with 130, the tracker back" { ended_by INT 130 capture; }

@test "HUP during the capture ends with 129, the tracker back" { ended_by HUP 129 capture; }

@test "INT during the finish ends with 130, nothing half-published" { ended_by INT 130 finish; }

@test "HUP during the preflight ends with 129, the tracker left alone" {
    ended_by HUP 129 preflight
    tracker_was_left_alone
}

@test "a signal acts at once on a capture that hangs" {
    on capture 'touch "$STUB/hanging"; exec sleep 60'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    local sent=$SECONDS
    kill -TERM "$PID"
    finished
    ends_with_status 143
    ((SECONDS - sent <= 5)) || fail "it took $((SECONDS - sent)) s"
}

# stop_goes_on SIGNAL CODE: Docker goes on stopping after its client died; a start before the end of
# the stop is lost.
stop_goes_on() {
    on stop '(sleep 1.5; stopped 137) >/dev/null 2>&1 & echo $$ >"$STUB/client"
        touch "$STUB/hanging"; wait; exit 0'
    on start '[[ $(fact status) != running ]] || exit 0'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill "-$1" "$PID"
    kill -KILL "$(<"$STUB/client")"
    finished
    ends_with_status "$2"
    tracker_is running
    [[ $(<"$STUB/tracker/started") != 2026-01-01T00:00:00Z ]] \
        || fail 'the tracker was not started after the stop'
    sleep 0.3
    tracker_is running
    [[ ! -e $STATE/window ]]
    nothing_was_published
}

@test "TERM during a stop that Docker goes on with: the tracker comes back after it" {
    stop_goes_on TERM 143
}

@test "INT during a stop that Docker goes on with: the tracker comes back after it" {
    stop_goes_on INT 130
}

@test "a client that dies during the stop: the tracker comes back after it" {
    on stop '(sleep 1; stopped 137) >/dev/null 2>&1 & kill -KILL $$'
    maintenance
    ends_with_status 1
    tracker_is running
    [[ $(<"$STUB/tracker/started") != 2026-01-01T00:00:00Z ]] \
        || fail 'the tracker was not started after the stop'
}

@test "TERM during a stop that ends: the tracker is back when the run is over" {
    ended_by TERM 143 stop 'sleep 0.5'
}

@test "TERM during a pause: the tracker is unpaused" {
    configure QUIESCE pause
    ended_by TERM 143 pause 'sleep 0.5'
}

@test "a second signal does not stop the tracker from coming back" {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    on start 'touch "$STUB/starting"; sleep 0.5'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -TERM -- "-$PID"
    wait_until 10 test -e "$STUB/starting"
    kill -INT -- "-$PID"
    kill -TERM -- "-$PID"
    finished
    ends_with_status 143
    tracker_is running
}

# ---------------------------------------------------------------- the log

@test "by hand every line is on the terminal and in the log, once" {
    on preflight 'echo "a word of the container" >&2'
    maintenance
    ends_with_status 0
    output_has 'a word of the container'
    [[ $output == "$(<"$LOG")" ]] || fail "the log:" "$(<"$LOG")"
    [[ -z $(sort "$LOG" | uniq -d) ]]
    [[ $(grep -c succeeded "$LOG") == 1 ]]
}

@test "under cron's redirection no line is in the log twice" {
    on capture 'echo "a word of the container" >&2; exit 1'
    status=0
    bash "$MAINTENANCE" >>"$LOG" 2>&1 || status=$?
    ends_with_status 1
    [[ $(grep -c 'a word of the container' "$LOG") == 1 ]]
    [[ $(grep -c 'ERROR: run' "$LOG") == 1 ]]
    [[ -z $(sort "$LOG" | uniq -d) ]] || fail "twice: $(sort "$LOG" | uniq -d)"
}

@test "the reason of a failure is logged once" {
    on capture 'echo "disk quota exceeded" >"$STUB_STAGING/$5/reason"; exit 1'
    maintenance
    [[ $(grep -c 'disk quota exceeded' "$LOG") == 1 ]]
}

@test "a log that is not there is made 0640" {
    maintenance
    [[ $(stat -c %a "$LOG") == 640 ]]
}

@test "a terminal that goes away does not end the run" {
    local codes
    bash "$MAINTENANCE" 2>&1 | true
    codes=("${PIPESTATUS[@]}")
    status=${codes[0]} output=$(<"$LOG")
    ends_with_status 0
    output_has succeeded
    tracker_is running
    recorded result=success
}

# As when containerd was dead at the moment at which the step ended.
unheard() { printf \
    'work=$STUB_STAGING/$5; %s; printf %s >"$work/ended"; exec sleep 60' \
    "$1" "$2"; }

@test "a step that succeeded although Docker's client never hears of it does not hold up the run" {
    on capture "$(unheard 'backup_step capture "$5"' 0)"
    on finish "$(unheard 'backup_step finish "$5"' 0)"
    SECONDS=0
    maintenance
    ends_with_status 0
    tracker_is running
    ((SECONDS < 40))
}

@test "a failed step that Docker's client never hears of fails the run with its reason" {
    on capture "$(unheard 'printf "the copy is empty\n" >"$work/reason"' 1)"
    maintenance
    ends_with_status 1
    tracker_is running
    [[ $output == *'the copy is empty'* ]]
}

# ---------------------------------------------------------------- dead runs, recovery, hold

# A run that was killed inside its window: the tracker is as it left it, the marker is there.
killed_in_the_window() {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    wait_until 3 gone "$PID"
    # A child that was just being made has it for a moment.
    wait_until 3 flock --nonblock "$STATE/lock" true
    : >"$CALLS"
}

@test "--recover without a marker does nothing, and takes no lock" {
    exec {held}>"$STATE/lock"
    flock "$held"
    maintenance --recover
    ends_with_status 0
    [[ -z $output && ! -s $CALLS && ! -e $LOG ]]
}

@test "--recover starts the tracker that a dead run stopped" {
    killed_in_the_window
    tracker_is exited
    maintenance --recover
    ends_with_status 0
    tracker_is running
    was_called '^docker start 7e57$'
    [[ ! -e $STATE/window ]]
}

@test "--recover unpauses the tracker that a dead run paused" {
    configure QUIESCE pause
    killed_in_the_window
    tracker_is paused
    maintenance --recover
    ends_with_status 0
    tracker_is running
    never_called '^docker start'
    [[ ! -e $STATE/window ]]
}

@test "--recover starts a paused tracker that is found exited" {
    configure QUIESCE pause
    killed_in_the_window
    printf exited >"$STUB/tracker/status"
    maintenance --recover
    ends_with_status 0
    tracker_is running
}

@test "--recover reads nothing in the deploy directory and needs no configuration" {
    killed_in_the_window
    rm -r "$STUB_DEPLOY" "$CONFIG"
    maintenance --recover
    ends_with_status 0
    tracker_is running
    never_called '^docker compose'
}

@test "--recover leaves a live run's window alone until its deadline" {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    maintenance --recover
    ends_with_status 0
    tracker_is exited
    [[ -e $STATE/window ]]
    kill -TERM "$PID"
    finished
    ends_with_status 143
    tracker_is running
}

@test "--recover takes over from a live run that is past its deadline" {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -STOP "$PID"
    # Long ago, as far as the deadline goes: the clock that bash reads cannot be moved, the marker's
    # epoch seconds can.
    sed -i -E 's/\b1[0-9]{9}\b/1000000000/g' "$STATE/window"
    maintenance --recover
    ends_with_status 0
    tracker_is running
    kill -KILL "$PID"
}

@test "--recover of a run past its deadline leaves the marker of the next one" {
    on capture 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -STOP "$PID"
    sed -i -E 's/\b1[0-9]{9}\b/1000000000/g' "$STATE/window"
    on start 'printf "7e57 2026-01-01T00:00:00Z stop 1000000000 2000000000 1 20300101_000000" \
        >"$TRACKER_BACKUP_STATE_DIR/window"'
    maintenance --recover
    ends_with_status 0
    [[ $(<"$STATE/window") == *20300101_000000 ]]
    kill -KILL "$PID"
}

@test "--recover respects a tracker that somebody started since" {
    killed_in_the_window
    printf later >"$STUB/tracker/started"
    maintenance --recover
    ends_with_status 0
    tracker_is exited
    tracker_was_left_alone
    [[ ! -e $STATE/window ]]
}

@test "--recover respects a tracker that somebody replaced since" {
    killed_in_the_window
    printf 5e7e >"$STUB/tracker/id"
    maintenance --recover
    ends_with_status 0
    tracker_was_left_alone
    [[ ! -e $STATE/window ]]
}

@test "--recover keeps the marker while Docker does not answer" {
    killed_in_the_window
    on ps 'exit 1'
    on inspect 'exit 1'
    maintenance --recover
    ends_with_status 4
    [[ -e $STATE/window ]]
    rm "$STUB/hooks/"{ps,inspect}
    maintenance --recover
    ends_with_status 0
    tracker_is running
    [[ ! -e $STATE/window ]]
}

@test "--recover keeps the marker while the tracker cannot be started" {
    no_waiting
    killed_in_the_window
    on start 'exit 1'
    maintenance --recover
    ends_with_status 4
    [[ -e $STATE/window ]]
}

@test "--recover brings back a tracker whose stop goes on after the run died" {
    on stop '(sleep 1.5; stopped 137) >/dev/null 2>&1 & touch "$STUB/hanging"; wait; exit 0'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    wait_until 3 gone "$PID"
    maintenance --recover
    ends_with_status 0
    tracker_is running
    [[ $(<"$STUB/tracker/started") != 2026-01-01T00:00:00Z ]] \
        || fail 'the tracker was not started after the stop'
    sleep 0.3
    tracker_is running
}

@test "--recover keeps the marker when the pause of a dead run takes effect late" {
    configure QUIESCE pause
    on pause '(sleep 1.5; printf paused >"$STUB/tracker/status") >/dev/null 2>&1 &
        touch "$STUB/hanging"; wait; exit 0'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    wait_until 3 gone "$PID"
    TRACKER_BACKUP_STEADY_SECONDS=3 maintenance --recover
    ends_with_status 4
    [[ -e $STATE/window ]]
    maintenance --recover
    ends_with_status 0
    tracker_is running
    [[ ! -e $STATE/window ]]
}

@test "--recover says nothing of somebody else when a run died before its pause" {
    configure QUIESCE pause
    on pause 'touch "$STUB/hanging"; exec sleep 30'
    start_run
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    wait_until 3 gone "$PID"
    maintenance --recover
    ends_with_status 0
    tracker_is running
    [[ $output != *somebody* && ! -e $STATE/window ]]
}

@test "the next run recovers the tracker of a dead one first, and then backs it up" {
    killed_in_the_window
    rm "$STUB/hooks/capture"
    maintenance
    ends_with_status 0
    called_in_order '^docker start 7e57' '^docker stop' '^docker exec .* capture ' \
        '^docker start 7e57'
    tracker_is running
}

@test "the marker is there before the tracker is touched" {
    on stop 'cp "$TRACKER_BACKUP_STATE_DIR/window" "$STUB/marker"'
    maintenance
    ends_with_status 0
    grep -q 7e57 "$STUB/marker"
    [[ ! -e $STATE/window ]]
}

@test "while hold is there neither a run nor a recovery does anything" {
    killed_in_the_window
    touch "$STATE/hold"
    maintenance --recover
    ends_with_status 3
    tracker_is exited
    maintenance
    ends_with_status 3
    tracker_was_left_alone
    [[ -e $STATE/window ]]
}

# ---------------------------------------------------------------- the copy elsewhere

# A repository that takes every copy; its steps are hooks: restic-STEP.
with_repository() {
    printf '%s\n' "RESTIC_REPOSITORY_FILE='/run/secrets/restic_repository'" \
        "RESTIC_PASSWORD_FILE='/run/secrets/restic_password'" >>"$STUB_DEPLOY/backup/backup.conf"
    mkdir -p "$STUB_DEPLOY/backup/secrets"
    printf 'secret' | tee "$STUB_DEPLOY/backup/secrets"/restic_{repository,password} >/dev/null
    # shellcheck disable=SC2016 # the stub's own
    printf '%s\n' '#!/usr/bin/env bash' 'printf "restic %s\n" "$*" >>"$STUB/calls"' \
        '[[ ! -f $STUB/hooks/restic-$1 ]] || source "$STUB/hooks/restic-$1"' \
        'case $1 in identify) echo 1dea ;; snapshots) echo "[]" ;; esac' >"$STUB/restic.sh"
    chmod +x "$STUB/restic.sh"
}

@test "what was published is pushed, after the window" {
    with_repository
    maintenance
    ends_with_status 0
    called_in_order '^docker start ' '^docker exec .* finish ' '^restic backup '
    output_has 'to the restic repository'
    recorded result=success exit_code=0
}

@test "a push that fails leaves the backup published, and ends the run with 1 and the reason" {
    with_repository
    on restic-backup 'echo "ERROR: no route" >&2; exit 14'
    maintenance
    ends_with_status 1
    output_has 'the backup was published, but copying to the restic repository failed'
    output_has 'no route'
    recorded result=success exit_code=0
    [[ $(published | wc -l) == 2 ]] || fail 'the backup is gone'
    nothing_is_left
}

@test "a failed run pushes nothing" {
    with_repository
    on finish 'exit 1'
    maintenance
    ends_with_status 1
    never_called '^restic '
}

@test "TERM during the push ends the run at once" {
    with_repository
    on restic-backup ': >"$STUB/pushing"; exec sleep 60'
    start_run
    wait_until 30 test -e "$STUB/pushing"
    kill -TERM "$PID"
    finished
    ends_with_status 143
    recorded result=success exit_code=0
    nothing_is_left
}
