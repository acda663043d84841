#!/usr/bin/env bats
# restore.sh apply and rollback as a process; staging is on a file system of its own where a test
# says so, as when a service's directory is a mount.

# Every test is a subshell of its own; bats and helpers.bash give it its variables.
# shellcheck disable=SC2030,SC2031,SC2154
bats_require_minimum_version 1.5.0

setup() {
    load helpers
    export BACKUP_DATA=$BATS_TEST_TMPDIR/deploy
    export BACKUP_STAGING=$BACKUP_DATA/storage/backup-staging
    ELSEWHERE=''
    stage
}

teardown() { [[ -z $ELSEWHERE ]] || rm -rf -- "$ELSEWHERE"; }

# stage: what `prepare` leaves, for a file that is there, one that is not, and a directory.
stage() {
    WORK=$BACKUP_STAGING/20260101_030000.restore
    mkdir -p "$BACKUP_DATA/storage/tracker" "$WORK"/{new/storage/caddy,new/storage/tracker,old}
    printf 'as it is\n' >"$BACKUP_DATA/storage/tracker/tracker.db"
    printf 'as it was\n' >"$WORK/new/storage/tracker/tracker.db"
    printf 'new\n' >"$WORK/new/storage/caddy/cert"
    printf '%s\0' storage/tracker/tracker.db storage/caddy/cert storage/tracker/tracker.db-wal \
        >"$WORK/targets"
}

on_another_file_system() {
    [[ $(stat -c %d /dev/shm) != "$(stat -c %d "$BATS_TEST_TMPDIR")" ]] \
        || fail '/dev/shm is no file system of its own'
    ELSEWHERE=$(mktemp -d -p /dev/shm)
    rm -r "$BACKUP_STAGING"
    BACKUP_STAGING=$ELSEWHERE
    stage
}

step() {
    run "$TIMEOUT" 30 bash "$TEMPLATES/backup/restore.sh" "$1" 20260101_030000.restore "${@:2}"
}

live() {
    (cd "$BACKUP_DATA" \
        && find . -path ./storage/backup-staging -prune -o -type f -print -exec cat {} + | sort)
}

inode() { stat -c %i "$1"; }

there_and_back() {
    local before
    before=$(live)
    step apply
    ends_with_status 0
    [[ $(<"$BACKUP_DATA/storage/tracker/tracker.db") == 'as it was'
        && $(<"$BACKUP_DATA/storage/caddy/cert") == new ]] \
        || fail "$(live)"
    [[ $(<"$WORK/old/storage/tracker/tracker.db") == 'as it is' ]]
    step rollback
    ends_with_status 0
    [[ $(live) == "$before" && ! -e $BACKUP_DATA/storage/caddy ]] || fail "$(live)"
}

@test "files are not copied where they can be linked" {
    local before
    before=$(inode "$BACKUP_DATA/storage/tracker/tracker.db")
    step apply
    ends_with_status 0
    [[ $(inode "$WORK/old/storage/tracker/tracker.db") == "$before" ]]
    step rollback
    [[ $(inode "$BACKUP_DATA/storage/tracker/tracker.db") == "$before" ]]
}

@test "what was swapped is swapped back" { there_and_back; }

@test "what was swapped is swapped back between two file systems" {
    on_another_file_system
    there_and_back
    [[ -z $(find "$BACKUP_DATA" "$WORK" -name '.tracker-backup-*') ]]
}

@test "a symlink is moved as one between two file systems" {
    on_another_file_system
    ln -sf /etc/passwd "$BACKUP_DATA/storage/tracker/tracker.db"
    step apply
    ends_with_status 0
    [[ $(readlink "$WORK/old/storage/tracker/tracker.db") == /etc/passwd
        && ! -L $BACKUP_DATA/storage/tracker/tracker.db ]]
}

@test "a roll-back that is cut short is rolled back again" {
    local partial
    on_another_file_system
    step apply
    partial=$BACKUP_DATA/storage/tracker/$(<"$WORK/partial")
    printf cut >"$partial"
    step rollback
    ends_with_status 0
    [[ $(live) == *'as it is'* && ! -e $partial ]] || fail "$(live)"
}

@test "a rollback writes through no link that was put there since, and is kept from nothing" {
    step apply
    mkdir "$BATS_TEST_TMPDIR/elsewhere" "$BACKUP_DATA/storage/tracker/tracker.db-wal"
    printf 'mine\n' >"$BATS_TEST_TMPDIR/elsewhere/tracker.db"
    mv "$BACKUP_DATA/storage/tracker" "$BATS_TEST_TMPDIR/moved"
    ln -s "$BATS_TEST_TMPDIR/elsewhere" "$BACKUP_DATA/storage/tracker"
    step rollback
    ends_with_status 0
    [[ $(<"$BATS_TEST_TMPDIR/elsewhere/tracker.db") == mine && ! -L $BACKUP_DATA/storage/tracker ]]
    [[ $(<"$BACKUP_DATA/storage/tracker/tracker.db") == 'as it is' ]] || fail "$(live)"
}

@test "a directory in the place of a file does not keep a rollback from the rest" {
    step apply
    rm "$BACKUP_DATA/storage/tracker/tracker.db"
    mkdir "$BACKUP_DATA/storage/tracker/tracker.db"
    step rollback
    ends_with_status 0
    [[ $(<"$BACKUP_DATA/storage/tracker/tracker.db") == 'as it is' ]] || fail "$(live)"
}

@test "no database that is restored stands beside the journal of another" {
    rm -r "$WORK/new" "$WORK/old"
    mkdir -p "$BATS_TEST_TMPDIR/config/storage/grafana"
    sqlite3 "$BATS_TEST_TMPDIR/config/storage/grafana/grafana.db" 'CREATE TABLE dashboard (id)'
    tar -C "$BATS_TEST_TMPDIR/config" -cf "$WORK/config.tar" .
    mkdir -p "$BACKUP_DATA/storage/grafana"
    printf hot >"$BACKUP_DATA/storage/grafana/grafana.db-journal"
    step prepare config
    ends_with_status 0
    step apply
    ends_with_status 0
    [[ -e $BACKUP_DATA/storage/grafana/grafana.db
        && ! -e $BACKUP_DATA/storage/grafana/grafana.db-journal ]] \
        || fail "$(live)"
    step rollback
    [[ $(<"$BACKUP_DATA/storage/grafana/grafana.db-journal") == hot
        && ! -e $BACKUP_DATA/storage/grafana/grafana.db ]] \
        || fail "$(live)"
}

@test "a restore that an earlier version began is rolled back without its partial copies" {
    step apply
    rm "$WORK/partial"
    printf cut >"$BACKUP_DATA/storage/tracker/tracker.db.restore-partial"
    step rollback
    ends_with_status 0
    [[ $(live) == *'as it is'* && ! -e $BACKUP_DATA/storage/tracker/tracker.db.restore-partial ]] \
        || fail "$(live)"
}

@test "the sizes are those of what is unpacked" {
    export BACKUP_DESTINATION=$BATS_TEST_TMPDIR/backups
    mkdir -p "$BACKUP_DESTINATION"/{sqlite,config}
    head -c 12345 /dev/zero | gzip >"$BACKUP_DESTINATION/sqlite/a.gz"
    head -c 678 /dev/zero | zstd -q >"$BACKUP_DESTINATION/config/b.zst"
    step measure sqlite/a.gz config/b.zst
    ends_with_status 0
    [[ $(<"$WORK/sizes") == $'12345\tsqlite/a.gz\n678\tconfig/b.zst' ]] || fail "$(<"$WORK/sizes")"
}
