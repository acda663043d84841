#!/usr/bin/env bats
# The programs together, on a real SQLite database: only Docker itself is a stub, which runs backup.sh
# where the container would.

# shellcheck disable=SC2154 # make_host gives every test its variables
bats_require_minimum_version 1.5.0

setup() {
    load helpers
    make_host
    DATABASE=$STUB_DEPLOY/storage/tracker/lib/database/tracker.db
    export BACKUP_CONFIG=$STUB_DEPLOY/backup/backup.conf BACKUP_DATA=$STUB_DEPLOY \
        BACKUP_STAGING=$STAGING BACKUP_DESTINATION=$STUB_DESTINATION \
        BACKUP_CLIENT_CONFIG=$BATS_TEST_TMPDIR/client.cnf
    mkdir -p "${DATABASE%/*}" "$STUB_DEPLOY/storage/tracker/log"
    printf 'SECRET=1\n' >"$STUB_DEPLOY/.env"
    printf '%s\n' "BACKUP_MODE='single'" "BACKUP_RETENTION_DAYS='7'" \
        "BACKUP_PATHS_FILE='$STUB_DEPLOY/backup/backup-paths.txt'" \
        "BACKUP_COMPRESSION='gzip'" "BACKUP_SCOPE='full'" "BACKUP_ALLOW_WRITER_STALL='false'" \
            "DB_TYPE='sqlite'" "DB_PATH='$DATABASE'" >"$BACKUP_CONFIG"
    printf '%s\n' "$STUB_DEPLOY/.env" "$STUB_DEPLOY/storage/tracker/etc" \
        "dir:$STUB_DEPLOY/storage/tracker/lib" \
        "?$STUB_DEPLOY/storage/caddy/etc" >"$STUB_DEPLOY/backup/backup-paths.txt"
    sqlite3 "$DATABASE" \
        "CREATE TABLE torrents (info_hash TEXT); CREATE TABLE whitelist (a); CREATE TABLE keys (a);
        INSERT INTO torrents VALUES ('aa'), ('bb')"
    local step
    for step in preflight capture finish; do on "$step" "exec bash '$BACKUP' \"\${@:4}\""; done
}

tool() { run python3 "$TOOL" "$@"; }

@test "a run is a backup that list and status know, and that restores" {
    maintenance
    ends_with_status 0
    tracker_is running
    nothing_is_left
    tool status
    ends_with_status 0
    output_has 'optional path missing'
    tool list --json
    python3 -c 'import json, os, sys
(run,) = json.load(sys.stdin)
assert run["result"] == "success" and run["sequence"] == 1, run
assert run["tables"] == {"torrents": 2, "whitelist": 0, "keys": 0}, run["tables"]
assert [file["kind"] for file in run["files"]] == ["database", "config"], run["files"]
for file in run["files"]:
    path = os.path.join(os.environ["STUB_DESTINATION"], file["path"])
    assert os.stat(path).st_size == file["bytes"], file
assert run["window_seconds"] > 0 and run["durations"] and run["tools"], run' <<<"$output"
    gzip -dc "$STUB_DESTINATION"/sqlite/*.gz >"$BATS_TEST_TMPDIR/restored.db"
    [[ $(sqlite3 "$BATS_TEST_TMPDIR/restored.db" 'SELECT group_concat(info_hash) FROM torrents') \
        == aa,bb ]]
    gzip -dc "$STUB_DESTINATION"/config/*.gz | tar -xOf - .env | grep -qx SECRET=1
}

@test "a table that the last run had and this one lacks is a warning, and retention is suspended" {
    maintenance
    ends_with_status 0
    local before
    before=$(published)
    sqlite3 "$DATABASE" 'DROP TABLE torrents; CREATE TABLE torrents_new (a)'
    maintenance
    ends_with_status 0
    output_has 'lacks the table torrents, which the last good run has'
    output_has 'retention is suspended'
    tracker_is running
    [[ $(published) == *"${before%%$'\n'*}"* ]]
}

@test "retention removes the old backups of a real run's environment, after that run" {
    local id=20250101_030000
    maintenance
    ends_with_status 0
    local first
    first=$(basename "$STUB_DESTINATION"/runs/*.json .json)
    sed "s/$first/$id/g" "$STUB_DESTINATION/runs/$first.json" >"$STUB_DESTINATION/runs/$id.json"
    touch "$STUB_DESTINATION/sqlite/sqlite_$id.db.gz" "$STUB_DESTINATION/config/config_$id.tar.gz"
    # Sequence 0: the older of the two, as its name says.
    sed -i 's/"sequence": 1/"sequence": 0/' "$STUB_DESTINATION/runs/$id.json"
    tool acknowledge                # of the pause between the two
    maintenance
    ends_with_status 0
    output_has "retention: removed sqlite/sqlite_$id.db.gz"
    [[ ! -e $STUB_DESTINATION/sqlite/sqlite_$id.db.gz && ! -e $STUB_DESTINATION/runs/$id.json ]]
    [[ -e $STUB_DESTINATION/sqlite/sqlite_$first.db.gz ]]
}

@test "a destination that is not mounted is found out before the tracker is touched" {
    mv "$STUB_DESTINATION" "$STUB_DESTINATION.unmounted"
    mkdir "$STUB_DESTINATION"
    maintenance
    ends_with_status 1
    output_has 'mounted'
    tracker_was_left_alone
    [[ -z $(ls -A "$STUB_DESTINATION") ]]
}

@test "a tracker that moved to another database is found out before it is touched" {
    sed -i 's/sqlite3/mysql/; s|/var/lib.*|mysql://u:secret@mysql:3306/torrust"|' \
        "$STUB_DEPLOY/storage/tracker/etc/tracker.toml"
    maintenance
    ends_with_status 1
    output_has 'the tracker uses mysql'
    output_lacks secret
    tracker_was_left_alone
}

@test "a run that was killed at any step leaves nothing that the next run does not put right" {
    local step
    for step in preflight capture finish; do
        on "$step" "touch '$STUB/hanging'; exec sleep 20"
        rm -f "$STUB/hanging"
        start_run
        wait_until 10 test -e "$STUB/hanging"
        kill -KILL "$PID"
        wait_until 5 gone "$PID"
        on "$step" "exec bash '$BACKUP' \"\${@:4}\""
        maintenance
        ends_with_status 0
        tracker_is running
        nothing_is_left
    done
    tool list
    [[ $(grep -c success <<<"$output") == 3 ]]
}

@test "a run stands still at each fault point of the container and of the tool, and goes on" {
    local point
    for point in capturing-the-database checking-the-database archiving-the-configuration \
        compressing-the-database syncing-the-compressed-database publishing-the-database \
        publishing-the-configuration writing-the-run-manifest removing-old-backups; do
        mkdir -m 0700 "$STAGING/.fault-points"
        touch "$STAGING/.fault-points/hold"
        export TRACKER_BACKUP_STOP_AT=$point
        start_run
        wait_until 20 test -e "$STAGING/.fault-points/reached" || fail "never came to $point"
        sleep 0.2
        ! gone "$PID" || fail "did not stand still at $point"
        rm "$STAGING/.fault-points/hold"
        finished
        ends_with_status 0
        rm -r "$STAGING/.fault-points"
    done
    nothing_is_left
}
