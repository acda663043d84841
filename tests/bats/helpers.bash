# What the tests of both scripts share: a host in a directory, stubs that record, and waits with an
# end.
# shellcheck shell=bash
# shellcheck disable=SC2154 # bats sets what begins with BATS_
# shellcheck disable=SC2034 # the tests use what is set here

TEMPLATES=${BUNDLE_TEMPLATES:-$BATS_TEST_DIRNAME/../../bundle-templates}
MAINTENANCE=$TEMPLATES/host/maintenance-backup.sh
BACKUP=$TEMPLATES/backup/backup.sh
TOOL=$TEMPLATES/host/tracker-backup
TIMEOUT=$(type -P timeout)

# A deploy directory, a destination, a configuration and a running tracker, all below the test's own
# directory.
make_host() {
    export STUB=$BATS_TEST_TMPDIR/stub STUB_DEPLOY=$BATS_TEST_TMPDIR/deploy \
        STUB_DESTINATION=$BATS_TEST_TMPDIR/destination
    LOG=$BATS_TEST_TMPDIR/tracker-backup.log
    OUTPUT=$BATS_TEST_TMPDIR/output
    STATE=$BATS_TEST_TMPDIR/state
    export STUB_STAGING=$STUB_DEPLOY/storage/backup-staging
    STAGING=$STUB_STAGING
    CONFIG=$BATS_TEST_TMPDIR/tracker-backup.conf
    IMAGE=gen-backup-bundle/backup:0123456789ab
    CALLS=$STUB/calls
    mkdir -p "$STUB"/{hooks,tracker,bin} "$STUB_DEPLOY"/{backup,storage/tracker/etc} \
        "$STAGING" "$STATE" "$STUB_DESTINATION"/{sqlite,mysql,config,runs}
    touch "$STUB_DEPLOY"/docker-compose{,.backup}.yml "$CALLS" "$STUB/containers"
    printf '%s\n' "$IMAGE" >"$STUB/images"
    printf '2.24.4\n' >"$STUB/compose-version"
    printf '7e57' >"$STUB/tracker/id"
    printf 'running' >"$STUB/tracker/status"
    printf '2026-01-01T00:00:00Z' >"$STUB/tracker/started"
    printf '0001-01-01T00:00:00Z' >"$STUB/tracker/finished"
    printf '0' >"$STUB/tracker/exit_code"
    printf '%s\n' "ENVIRONMENT='production'" "DEPLOY_DIR='$STUB_DEPLOY'" \
        "DESTINATION='$STUB_DESTINATION'" \
        "STRATEGY='maintenance-window'" "QUIESCE='stop'" "STOP_TIMEOUT_SECONDS='1'" \
        "WINDOW_TIMEOUT_SECONDS='30'" \
        "SCHEDULE='0 3 * * *'" "LONGEST_INTERVAL_SECONDS='86400'" "CALENDAR='0 3 1,2 1 0 both'" \
        "IMAGE='$IMAGE'" "IMAGE_SOURCE='build'" >"$CONFIG"
    export TRACKER_BACKUP_DOCKER_PID_FILE=$STUB/docker.pid
    export PATH=$STUB/bin:$BATS_TEST_DIRNAME/stubs:$PATH
    export TRACKER_BACKUP_ROOT=$BATS_TEST_TMPDIR/root
    mkdir -p "$TRACKER_BACKUP_ROOT/etc"
    printf '5ca1ab1e\n' >"$TRACKER_BACKUP_ROOT/etc/machine-id"
    printf '{"environment": "production", "machine_id": "5ca1ab1e"}\n' \
        >"$STUB_DESTINATION/.tracker-backup.json"
    printf '%s\n' '[core.database]' 'driver = "sqlite3"' \
        'path = "/var/lib/torrust/tracker/database/tracker.db"' \
        >"$STUB_DEPLOY/storage/tracker/etc/tracker.toml"
    printf '%s\n' "BACKUP_RETENTION_DAYS='7'" "BACKUP_SCOPE='full'" "DB_TYPE='sqlite'" \
        "DB_PATH='/data/storage/tracker/lib/database/tracker.db'" \
        >"$STUB_DEPLOY/backup/backup.conf"
    printf '/data/.env\n' >"$STUB_DEPLOY/backup/backup-paths.txt"
    export TRACKER_BACKUP_CONFIG=$CONFIG \
        TRACKER_BACKUP_STATE_DIR=$STATE TRACKER_BACKUP_LOG=$LOG TRACKER_BACKUP_LOCK_SECONDS=1 \
        TRACKER_BACKUP_STEADY_SECONDS=0 \
        TRACKER_BACKUP_PAUSE_RETRY_SECONDS=0
}

# configure KEY VALUE: another value in the host's configuration.
configure() { sed -i "s|^$1=.*|$1='$2'|" "$CONFIG"; }

# on EVENT BASH: what else happens at a call of the stub; `exit N` there is the answer of the whole
# call.
on() { printf '%s\n' "$2" >"$STUB/hooks/$1"; }

tracker_is() { [[ $(<"$STUB/tracker/status") == "$1" ]]; }

# old_backup: a success of eight days ago, which a run removes, and one of four days ago.
old_backup() {
    local days sequence=1 id
    for days in 8 4; do
        id=$(date -u -d "-$days days" +%Y%m%d_%H%M%S)
        python3 -c 'import json, sys
id, sequence, path = sys.argv[1:]
file = {"kind": "database", "path": f"sqlite/sqlite_{id}.db.gz", "bytes": 0, "sha256": "0" * 64}
run = {"format": 1, "id": id, "sequence": int(sequence), "environment": "production"}
run |= {"started": "", "result": "success", "exit_code": 0, "reason": "", "scope": "full"}
run |= {"window_seconds": 1, "files": [file], "paths": [], "tables": {}, "images": {}}
json.dump(run | {"directories": {}, "warnings": []}, open(path, "w"))' \
            "$id" "$sequence" "$STUB_DESTINATION/runs/$id.json"
        touch "$STUB_DESTINATION/sqlite/sqlite_$id.db.gz"
        sequence=$((sequence + 1))
    done
    OLD=$STUB_DESTINATION/sqlite/sqlite_$(date -u -d '-8 days' +%Y%m%d)_
}

# ---------------------------------------------------------------- running

# maintenance ARGUMENT...: a run by hand, to its end; sets status and output.
maintenance() { run "$TIMEOUT" 60 bash "$MAINTENANCE" "$@"; }

# start_run ARGUMENT...: one in the background, with the signals as a terminal or cron gives them;
# PID is the script's.
start_run() {
    setsid env --default-signal bash "$MAINTENANCE" "$@" </dev/null >"$OUTPUT" 2>&1 3>&- &
    PID=$!
}

# Waits for the run of start_run; sets status and output.
finished() {
    wait_until 40 gone "$PID" || kill -KILL "$PID"
    status=0
    wait "$PID" || status=$?
    output=$(<"$OUTPUT")
}

gone() { [[ ! -e /proc/$1 || $(</proc/"$1"/stat) == *') Z '* ]]; }

# wait_until SECONDS COMMAND...
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        ((SECONDS <= end)) || { printf 'waited in vain for: %s\n' "$*" >&2; return 1; }
        sleep 0.02
    done
}

# no_waiting: the script gives up bringing the tracker back after two more attempts.
no_waiting() { export TRACKER_BACKUP_BRING_BACK_SECONDS=1; }

# ---------------------------------------------------------------- asserting

# A failed assertion shows what it looked at.
fail() {
    printf '%s\n' "$@" "--- status ${status-}, output:" "${output-}" '--- calls:' \
        "$(cat "$CALLS" 2>/dev/null)" >&2
    return 1
}

ends_with_status() { [[ $status == "$1" ]] || fail "exit code $status instead of $1"; }

output_has() { [[ $output == *"$1"* ]] || fail "the output lacks: $1"; }

output_lacks() { [[ $output != *"$1"* ]] || fail "the output has: $1"; }

was_called() { grep -q -- "$1" "$CALLS" || fail "never called: $1"; }

never_called() { ! grep -q -- "$1" "$CALLS" || fail "was called: $1"; }

# called_in_order REGEX...: each matches a call later than the one before.
called_in_order() {
    local pattern line
    exec {calls}<"$CALLS"
    for pattern in "$@"; do
        while true; do
            IFS= read -r line <&"$calls" || { exec {calls}<&-; fail \
                "not called, or not in this order: $pattern"; return 1; }
            [[ ! $line =~ $pattern ]] || break
        done
    done
    exec {calls}<&-
}

# The tracker was neither stopped, paused, started nor unpaused. Our own container is no tracker.
tracker_was_left_alone() {
    ! grep '^docker \(stop\|pause\|start\|unpause\|restart\|kill\) ' "$CALLS" \
        | grep -v ' tracker-backup-' || fail 'the tracker was touched'
}

published() { find "$STUB_DESTINATION"/{sqlite,mysql,config} -type f; }

nothing_was_published() { [[ -z $(published) ]] || fail "published: $(published)"; }

# Neither staging nor a container is left.
nothing_is_left() {
    [[ -z $(find "$STAGING" -mindepth 1) ]] || fail \
        "left in staging: $(find "$STAGING" -mindepth 1)"
    [[ ! -s $STUB/containers ]] || fail "containers left: $(<"$STUB/containers")"
}

# facts FILE: a run manifest, one fact a line.
facts() {
    python3 -c 'import json, sys
run = json.load(open(sys.argv[1]))
for key in ("id", "started", "result", "exit_code", "reason", "quiesce"):
    print(f"{key}={run[key]}")
print("window_seconds=%g" % run["window_seconds"])
for warning in run["warnings"]:
    print(f"warning={warning}")' "$1"
}

# recorded REGEX...: the one run manifest has these facts.
recorded() {
    local manifests=("$STUB_DESTINATION"/runs/*.json) line
    [[ ${#manifests[@]} == 1 && -e ${manifests[0]} ]] \
        || { fail "run manifests: ${manifests[*]}"; return 1; }
    for line in "$@"; do facts "${manifests[0]}" | grep -qx -- "$line" \
        || { fail "the run manifest lacks $line:" "$(<"${manifests[0]}")"; return 1; }; done
}

nothing_was_recorded() { [[ -z $(ls -A "$STUB_DESTINATION/runs") ]] \
    || fail "recorded: $(ls -A "$STUB_DESTINATION/runs")"; }
