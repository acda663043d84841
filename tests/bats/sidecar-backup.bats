#!/usr/bin/env bats
# The sidecar's run, `backup.sh now`, with the real steps on a real SQLite database: no Docker, no
# tracker, nothing but the lock of the host.

# shellcheck disable=SC2016 # hooks are expanded by the stub that sources them
# Every test is a subshell of its own; make_host gives it its variables.
# shellcheck disable=SC2030,SC2031,SC2153,SC2154
bats_require_minimum_version 1.5.0

setup() {
    load helpers
    make_host
    configure STRATEGY sidecar
    configure QUIESCE none
    touch "$STATE/lock"
    DATABASE=$STUB_DEPLOY/storage/tracker/lib/database/tracker.db
    export BACKUP_CONFIG=$STUB_DEPLOY/backup/backup.conf BACKUP_DATA=$STUB_DEPLOY \
        BACKUP_STAGING=$STAGING BACKUP_DESTINATION=$STUB_DESTINATION \
        BACKUP_CLIENT_CONFIG=$BATS_TEST_TMPDIR/client.cnf \
        TRACKER_BACKUP_STEPS=$BATS_TEST_TMPDIR/backup.sh \
        BACKUP_PROGRAM=$BATS_TEST_TMPDIR/__main__.py
    cp -R "$TEMPLATES"/{host/__main__.py,backup/tracker_backup} "$BATS_TEST_TMPDIR"
    install -m 0755 "${BACKUP%/*}"/{backup.sh,lib.sh} "$BATS_TEST_TMPDIR"
    mkdir -p "${DATABASE%/*}"
    printf 'SECRET=1\n' >"$STUB_DEPLOY/.env"
    printf '%s\n' "BACKUP_MODE='single'" "BACKUP_RETENTION_DAYS='7'" \
        "BACKUP_PATHS_FILE='$STUB_DEPLOY/backup/backup-paths.txt'" \
        "BACKUP_COMPRESSION='gzip'" "BACKUP_SCOPE='full'" "BACKUP_ALLOW_WRITER_STALL='false'" \
            "DB_TYPE='sqlite'" "DB_PATH='$DATABASE'" >"$BACKUP_CONFIG"
    printf '%s\n' "$STUB_DEPLOY/.env" >"$STUB_DEPLOY/backup/backup-paths.txt"
    sqlite3 "$DATABASE" \
        "PRAGMA journal_mode = wal; CREATE TABLE torrents (info_hash TEXT);
        CREATE TABLE whitelist (a); CREATE TABLE keys (a);
        INSERT INTO torrents VALUES ('aa'), ('bb')"
    told "$(date -u +%FT%TZ)" ''
}

teardown() {
    if [[ -n ${PID-} ]] && ! gone "$PID"; then kill -KILL -- "-$PID" || true; fi
}

sidecar() { run "$TIMEOUT" 60 bash "$BACKUP" now "$@"; }

start_sidecar() {
    setsid env --default-signal bash "$BACKUP" now </dev/null >"$OUTPUT" 2>&1 3>&- &
    PID=$!
}

# told TIME REFUSED: what the host has told.
told() {
    printf '{"at": "%s", "images": {"tracker": "sha256:feed"}, "directories": {}, ' "$1"
    printf '"refused": "%s", "warnings": ["the tracker is exited"]}' "$2"
} >"$STATE/stack.json"

@test "a run captures online, publishes, records and prunes, and asks Docker for nothing" {
    sidecar
    ends_with_status 0
    never_called '^docker '
    nothing_is_left
    recorded result=success quiesce=none window_seconds=0
    gzip -dc "$STUB_DESTINATION"/sqlite/*.gz >"$BATS_TEST_TMPDIR/restored.db"
    [[ $(sqlite3 "$BATS_TEST_TMPDIR/restored.db" 'SELECT group_concat(info_hash) FROM torrents') \
        == aa,bb ]]
    grep -q 'sidecar-backup\[.*succeeded' "$LOG"
}

@test "the run manifest holds what the host has told, and the container is healthy then" {
    chmod a-w "$STATE"                  # as where it is mounted
    sidecar
    chmod u+w "$STATE"
    ends_with_status 0
    python3 -c 'import json, sys
run = json.load(open(sys.argv[1]))
assert (run["result"], run["strategy"], run["images"]) == (
    "success", "sidecar", {"tracker": "sha256:feed"}), run
assert run["warnings"] == ["the tracker is exited"], run' "$STUB_DESTINATION"/runs/*.json
    TRACKER_BACKUP_DEPLOY_DIR=$STUB_DEPLOY run python3 "$BACKUP_PROGRAM" check freshness
    ends_with_status 0
}

@test "what the host refuses fails the run" {
    told "$(date -u +%FT%TZ)" 'the tracker uses mysql'
    sidecar
    ends_with_status 1
    output_has 'the tracker uses mysql'
    nothing_was_published
}

@test "a host that tells nothing fails the run, and one that has stopped telling is a warning" {
    rm "$STATE/stack.json"
    sidecar
    ends_with_status 1
    output_has 'stack.json is missing'
    nothing_was_published
    told 2026-01-01T00:00:00Z ''
    sidecar
    ends_with_status 0
    output_has 'does it run?'
}

@test "a lock that somebody holds ends with 75, and nothing was done" {
    exec {held}>"$STATE/lock"
    flock "$held"
    sidecar
    ends_with_status 75
    nothing_was_recorded
    exec {held}>&-
}

@test "without its lock it says what to do" {
    rm "$STATE/lock"
    sidecar
    ends_with_status 2
    output_has 'install the bundle again'
}

@test "the lock is free when the script dies in mid-capture, and the next run cleans up" {
    printf '#!/bin/sh\ntouch "%s/hanging"; exec sleep 20\n' "$STUB" >"$STUB/steps"
    chmod +x "$STUB/steps"
    TRACKER_BACKUP_STEPS=$STUB/steps start_sidecar
    wait_until 10 test -e "$STUB/hanging"
    kill -KILL "$PID"
    wait_until 3 flock --nonblock "$STATE/lock" true
    [[ -n $(ls "$STAGING") ]]
    sidecar
    ends_with_status 0
    output_has 'removing what a dead run left'
    nothing_is_left
}

@test "TERM in mid-capture ends the step, publishes nothing and is recorded" {
    printf '#!/bin/sh\ntouch "%s/hanging"; exec sleep 21\n' "$STUB" >"$STUB/steps"
    chmod +x "$STUB/steps"
    TRACKER_BACKUP_STEPS=$STUB/steps start_sidecar
    wait_until 10 test -e "$STUB/hanging"
    kill -TERM "$PID"
    finished
    ends_with_status 143
    recorded result=failed exit_code=143
    nothing_was_published
    nothing_is_left
    run ! pgrep --full '^sleep 21$'
}

@test "hold, and a restore that died, keep it from running" {
    touch "$STATE/hold"
    sidecar
    ends_with_status 3
    rm "$STATE/hold"
    touch "$STATE/restore.json"
    sidecar
    ends_with_status 1
    output_has 'rolls it back'
    nothing_was_published
}

@test "another strategy or quiesce is a configuration error" {
    configure STRATEGY maintenance-window
    sidecar
    ends_with_status 2
    configure STRATEGY sidecar
    configure QUIESCE stop
    sidecar
    ends_with_status 2
    nothing_was_recorded
}

@test "a failed step gives its own reason" {
    sqlite3 "$DATABASE" 'DROP TABLE keys'
    sidecar
    ends_with_status 1
    output_has 'lacks the tables: keys'
    recorded result=failed
    nothing_was_published
}

@test "a dry run publishes and records nothing" {
    sidecar --dry-run
    ends_with_status 0
    output_has 'everything is ready'
    nothing_was_published
    nothing_was_recorded
    nothing_is_left
}

# ---------------------------------------------------------------- its own process

@test "the container's process gives cron the schedule and warns of an unknown time zone" {
    printf '#!/bin/sh\necho "cron $* TZ=$TZ"\n' >"$STUB/bin/cron"
    chmod +x "$STUB/bin/cron"
    export BACKUP_CRON_FILE=$STUB/crontab
    BACKUP_SCHEDULE='15 */4 * * *' TZ=CET-1CEST,M3.5.0,M10.5.0/3 run bash "$BACKUP" sidecar
    ends_with_status 0
    output_has 'cron -f TZ=CET-1CEST,M3.5.0,M10.5.0/3'
    output_lacks WARNING
    grep -qxF '15 */4 * * * root /usr/local/bin/backup.sh now >>/proc/1/fd/1 2>&1' "$STUB/crontab"
    BACKUP_SCHEDULE='15 */4 * * *' TZ=Mars/Olympus run bash "$BACKUP" sidecar
    output_has 'does not know the time zone Mars/Olympus'
    run bash "$BACKUP" sidecar
    ends_with_status 2
    output_has BACKUP_SCHEDULE
}
