#!/usr/bin/env bats
# backup.sh as a process, with the real sqlite3, tar, pigz, zstd and mawk; MySQL's client is a stub.

# shellcheck disable=SC2016 # hooks and stubs are expanded when they run
# Every test is a subshell of its own; bats and helpers.bash give it its variables.
# shellcheck disable=SC2030,SC2031,SC2154
bats_require_minimum_version 1.5.0

RUN_ID=20260102_030405

setup() {
    load helpers
    export STUB=$BATS_TEST_TMPDIR/stub
    export BACKUP_CONFIG=$BATS_TEST_TMPDIR/backup.conf BACKUP_DATA=$BATS_TEST_TMPDIR/data \
        BACKUP_STAGING=$BATS_TEST_TMPDIR/staging BACKUP_DESTINATION=$BATS_TEST_TMPDIR/backups \
        BACKUP_CLIENT_CONFIG=$BATS_TEST_TMPDIR/client.cnf BACKUP_ONLINE_RETRY_SECONDS=0
    export BACKUP_MEMORY=$STUB/memory
    export PATH=$STUB/bin:$BATS_TEST_DIRNAME/stubs:$PATH
    CONF=$BACKUP_CONFIG DATA=$BACKUP_DATA WORK=$BACKUP_STAGING/$RUN_ID
    DESTINATION=$BACKUP_DESTINATION CALLS=$STUB/calls PATHS=$BATS_TEST_TMPDIR/backup-paths.txt
    DATABASE=$DATA/storage/tracker/lib/database/tracker.db
    mkdir -p "$STUB"/{hooks,bin} "$WORK" "$DESTINATION" \
        "$DATA"/storage/tracker/{etc,lib/database,log}
    touch "$CALLS" "$WORK"/expected-{tables,bytes}
    memory 1000000
    printf 'SECRET=1\n' >"$DATA/.env"
    printf 'services: {}\n' >"$DATA/docker-compose.yml"
    printf '[core]\n' >"$DATA/storage/tracker/etc/tracker.toml"
    make_database "$DATABASE"
    printf '%s\n' "BACKUP_MODE='single'" "BACKUP_RETENTION_DAYS='7'" "BACKUP_PATHS_FILE='$PATHS'" \
        "BACKUP_COMPRESSION='gzip'" "BACKUP_SCOPE='full'" "BACKUP_ALLOW_WRITER_STALL='false'" \
        "DB_TYPE='sqlite'" "DB_PATH='$DATABASE'" >"$CONF"
    printf '%s\n' '# what is in the archive' "$DATA/.env" "$DATA/docker-compose.yml" \
        "$DATA/storage/tracker/etc" "dir:$DATA/storage/tracker/lib" \
        "dir:$DATA/storage/tracker/log" >"$PATHS"
}

teardown() {
    if [[ -n ${WRITER-} ]]; then { kill -KILL "$WRITER" && wait "$WRITER"; } 2>/dev/null || true; fi
}

# make_database FILE [SQL]: the tracker's tables, with three torrents, one whitelisted, no key.
make_database() {
    sqlite3 "$1" "
        CREATE TABLE torrents (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE,
            completed INTEGER NOT NULL);
        CREATE TABLE whitelist (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE);
        CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, valid_until INTEGER);
        INSERT INTO torrents (info_hash, completed) VALUES ('aa', 1), ('bb', 0), ('cc', 7);
        INSERT INTO whitelist (info_hash) VALUES ('aa'); ${2-}"
}

# memory KIBIBYTES: so much is available.
memory() {
    printf '%-15s %8d kB\n' MemTotal: 16000000 MemFree: 1000 MemAvailable: "$1" >"$BACKUP_MEMORY"
}

# use_mysql [PASSWORD]: without one, one that would do harm if anything executed it.
use_mysql() {
    local password="p\"a\\ss\$(touch $BATS_TEST_TMPDIR/pwned) '#;=%"
    printf '%s' "${1-$password}" >"$BATS_TEST_TMPDIR/db_password"
    sed -i '/^DB_/d' "$CONF"
    printf '%s\n' "DB_TYPE='mysql'" "DB_HOST='mysql'" "DB_PORT='3306'" "DB_USER='tracker'" \
        "DB_NAME='torrust'" "DB_PASSWORD_FILE='$BATS_TEST_TMPDIR/db_password'" \
        "DB_TLS='unverified'" >>"$CONF"
    printf '%s\n' torrents whitelist keys >"$STUB/tables"
    cat >"$STUB/dump" <<'SQL'
/*M!999999\- enable the sandbox mode */
-- MariaDB dump 10.19-11.8.3-MariaDB, for debian-linux-gnu (x86_64)
DROP TABLE IF EXISTS `torrents`;
CREATE TABLE `torrents` (
  `id` int NOT NULL AUTO_INCREMENT,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB;
INSERT INTO `torrents` VALUES
(1,'aa',1),
(2,'(tricky;\n(not a row;',0),
(3,'cc',7);
CREATE TABLE `whitelist` (
  `id` int NOT NULL
) ENGINE=InnoDB;
INSERT INTO `whitelist` VALUES
(1,'aa');
INSERT INTO `whitelist` VALUES
(2,'bb');
CREATE TABLE `keys` (
  `id` int NOT NULL
) ENGINE=InnoDB;
CREATE TABLE `it's ``quoted``` (
  `id` int NOT NULL
) ENGINE=InnoDB;
INSERT INTO `it's ``quoted``` VALUES
(1);
-- Dump completed on 2026-01-02  3:04:05
SQL
}

# conf KEY VALUE: another value in backup.conf.
conf() {
    local escaped quote="'\\''"
    escaped=${2//\'/$quote}
    grep -v "^$1=" "$CONF" >"$CONF.new"
    printf "%s='%s'\n" "$1" "$escaped" >>"$CONF.new"
    mv "$CONF.new" "$CONF"
}

step() { run "$TIMEOUT" 60 bash "$BACKUP" "$1" "$RUN_ID" "${@:2}"; }

preflight() { step preflight "${1-copy}"; }

# As before a window.
preflight_with_room() { step preflight copy room; }

# The whole of a run, to be right to its end.
back_up() {
    local part
    for part in "preflight ${1-copy}" "capture ${1-copy}" finish; do
        # shellcheck disable=SC2086 # a step and its method
        step $part
        ends_with_status 0 || { cat "$WORK/reason" >&2; return 1; }
    done
}

# reason_has TEXT: what the run manifest will say.
reason_has() {
    [[ -s $WORK/reason && $(<"$WORK/reason") == *"$1"* ]] \
        || fail "the reason is: $(cat "$WORK/reason" 2>&1)"
}

fails_with() {
    ends_with_status "$1"
    reason_has "$2"
}

has_result() { grep -qxF -- "$1" "$WORK/result" || fail "no such result: $1" "$(<"$WORK/result")"; }

final_names() { find "$DESTINATION" -type f ! -name '*.partial' -printf '%P\n'; }

nothing_has_a_final_name() { [[ -z $(final_names) ]] || fail "published: $(final_names)"; }

# restored: the published database, as a file.
restored() {
    local packed=("$DESTINATION/sqlite/sqlite_$RUN_ID".db.*)
    if [[ ${packed[0]} == *.gz ]]; then
        gzip -dc "${packed[0]}"
    else
        zstd -dcq "${packed[0]}"
    fi >"$BATS_TEST_TMPDIR/restored.db"
    printf '%s' "$BATS_TEST_TMPDIR/restored.db"
}

# holds FILE SQL ANSWER
holds() {
    local answer
    answer=$(sqlite3 "$1" "$2")
    [[ $answer == "$3" ]] || fail "$2 is '$answer', not '$3'"
}

# Restoring what was published gives the live database's content.
restores() {
    local file
    file=$(restored)
    holds "$file" 'PRAGMA integrity_check' ok
    holds "$file" "SELECT group_concat(info_hash || completed)
        FROM (SELECT * FROM torrents ORDER BY id LIMIT 4)" "${1-aa1,bb0,cc7}"
    holds "$file" "SELECT count(*) FROM whitelist" 1
    holds "$file" "SELECT count(*) FROM keys" 0
}

# members: names of the archive, one a line; with its first argument as tar's listing option.
members() {
    gzip -dc "$DESTINATION/config/config_$RUN_ID.tar.gz" | tar --numeric-owner "-t${1-}f" -
}

has_member() { members | grep -qxF -- "$1" || fail "not in the archive: $1" "$(members)"; }

# ---------------------------------------------------------------- usage and configuration

@test "a step that does not exist, a run id that is none and a run without staging end with 2" {
    run bash "$BACKUP"
    ends_with_status 2
    output_has usage
    run bash "$BACKUP" restore "$RUN_ID"
    ends_with_status 2
    run bash "$BACKUP" capture '../../etc' copy
    ends_with_status 2
    run bash "$BACKUP" capture 20260102_030406 copy
    ends_with_status 2
    output_has 20260102_030406
}

@test "idle ends at once on TERM" {
    bash "$BACKUP" idle 3>&- &
    local idle=$! sleeping
    wait_until 10 pgrep -P "$idle"
    sleeping=$(pgrep -P "$idle")
    kill -TERM "$idle"
    wait_until 10 gone "$idle"
    wait "$idle"
    kill "$sleeping"
}

@test "a configuration that is not there ends with 2 and says what to do" {
    rm "$CONF"
    preflight
    fails_with 2 'install the bundle again'
    mkdir "$CONF"
    preflight
    fails_with 2 "$CONF"
}

@test "every key that is missing or empty is named, with 2" {
    local key
    cp "$CONF" "$CONF.whole"
    for key in BACKUP_MODE BACKUP_PATHS_FILE BACKUP_COMPRESSION BACKUP_SCOPE DB_TYPE DB_PATH; do
        grep -v "^$key=" "$CONF.whole" >"$CONF"
        preflight
        fails_with 2 "$key is missing or empty"
        cp "$CONF.whole" "$CONF"
        conf "$key" ''
        preflight
        fails_with 2 "$key is missing or empty"
    done
}

@test "every key of MySQL that is missing is named, with 2" {
    local key
    use_mysql
    cp "$CONF" "$CONF.whole"
    for key in DB_HOST DB_PORT DB_USER DB_NAME DB_PASSWORD_FILE DB_TLS; do
        grep -v "^$key=" "$CONF.whole" >"$CONF"
        preflight
        fails_with 2 "$key is missing or empty"
    done
    never_called mariadb
}

@test "what the user of MySQL has no right to see is a warning of the run" {
    use_mysql
    preflight
    ends_with_status 0
    output_lacks 'may not see'
    touch "$STUB/unprivileged"
    preflight
    ends_with_status 0
    output_has 'may not see triggers'
    grep -q $'^warning\t.*may not see other users\' routines' "$WORK/result" \
        || fail "$(cat "$WORK/result")"
}

@test "a misspelt value ends with 2, with what is allowed: never a silent 'no database'" {
    local pair
    cp "$CONF" "$CONF.whole"
    for pair in DB_TYPE=sqlite3 DB_TYPE=MySQL DB_TYPE=none DB_TYPE=postgresql BACKUP_MODE=Single \
        BACKUP_COMPRESSION=gz BACKUP_SCOPE=ful; do
        cp "$CONF.whole" "$CONF"
        conf "${pair%=*}" "${pair#*=}"
        preflight
        fails_with 2 "${pair%=*}='${pair#*=}'"
        reason_has allowed
    done
    cp "$CONF.whole" "$CONF"
    use_mysql
    conf DB_TLS no
    preflight
    fails_with 2 "DB_TLS='no'"
}

@test "a line that is no KEY='value' ends with 2 and its number" {
    local line
    cp "$CONF" "$CONF.whole"
    for line in 'DB_PATH=/data/x' "export DB_PATH='x'" "DB_PATH='x'; touch pwned" \
        "DB_PATH='x' 'y'" "DB_PATH='it's'" 'DB_PATH="x"' "DB_PATH = 'x'"; do
        { printf '%s\n' "$line"; cat "$CONF.whole"; } >"$CONF"
        preflight
        fails_with 2 'line 1'
    done
    [[ ! -e pwned ]]
}

@test "no value is executed, whatever it holds, and every value comes through" {
    local touch="touch $BATS_TEST_TMPDIR/pwned" name
    name="a b'c\"d\$($touch)\`$touch\`;#\\%é.db"
    name=${name//\//_}
    mv "$DATABASE" "${DATABASE%/*}/$name"
    conf DB_PATH "${DATABASE%/*}/$name"
    back_up
    restores
    [[ -z $(find "$BATS_TEST_TMPDIR" . -maxdepth 1 -name '*pwned*') ]]
}

@test "CRLF line ends and a missing final newline are read right" {
    local file
    for file in "$CONF" "$PATHS"; do
        sed -i 's/$/\r/' "$file"
        truncate -s -2 "$file"
    done
    back_up
    restores
    has_member storage/tracker/etc/tracker.toml
    has_member storage/tracker/log/
}

@test "empty lines and comments in both files are passed over" {
    printf '\n   \n# a comment\n  # another\n' >>"$CONF"
    printf '\n   \n# a comment\n  # another\n' >>"$PATHS"
    preflight
    ends_with_status 0
}

# ---------------------------------------------------------------- the path list

@test "a path list that is not there ends with 2" {
    rm "$PATHS"
    preflight
    fails_with 2 "$PATHS"
}

@test "a path list that names nothing ends with 2" {
    printf '# nothing\n' >"$PATHS"
    preflight
    fails_with 2 'names no path'
}

@test "a required path that is missing fails preflight and finish" {
    printf '%s\n' "$DATA/storage/caddy/etc" >>"$PATHS"
    preflight
    fails_with 1 "$DATA/storage/caddy/etc"
    reason_has 'does not exist'
    step capture copy
    step finish
    fails_with 1 "$DATA/storage/caddy/etc"
    nothing_has_a_final_name
}

@test "an optional path that is missing is a warning, once, of whatever kind" {
    printf '?%s\n' "$DATA/storage/caddy/etc" "dir:$DATA/storage/caddy/config" \
        "sqlite:$DATA/grafana.db" >>"$PATHS"
    back_up
    has_result $'warning\t'"optional path missing: $DATA/storage/caddy/etc"
    has_result $'warning\t'"optional path missing: $DATA/storage/caddy/config"
    has_result $'warning\t'"optional path missing: $DATA/grafana.db"
    [[ $(grep -c ^warning "$WORK/result") == 3 ]] || fail "$(<"$WORK/result")"
}

@test "an optional path that is there is archived" {
    mkdir -p "$DATA/storage/prometheus/etc"
    touch "$DATA/storage/prometheus/etc/prometheus.yml"
    printf '?%s\n' "$DATA/storage/prometheus/etc" >>"$PATHS"
    back_up
    has_member storage/prometheus/etc/prometheus.yml
}

@test "a path outside the deployment is refused, however it is written" {
    local path
    cp "$PATHS" "$PATHS.whole"
    for path in /etc/passwd "$DATA" "${DATA}base/x" "$DATA/../client.cnf" \
        "$DATA/storage/../../client.cnf" relative/path 'sqlite:/etc/x.db' 'dir:/etc'; do
        touch "$BATS_TEST_TMPDIR/client.cnf"
        { cat "$PATHS.whole"; printf '%s\n' "$path"; } >"$PATHS"
        rm -f "$WORK/reason"
        preflight
        fails_with 2 below || { printf 'accepted: %s\n' "$path" >&2; return 1; }
    done
}

@test "a path that is a symlink, or leads through one, is refused" {
    local path
    ln -s /etc "$DATA/storage/caddy"
    ln -s nowhere "$DATA/storage/dangling"
    cp "$PATHS" "$PATHS.whole"
    for path in storage/caddy storage/caddy/passwd storage/dangling; do
        { cat "$PATHS.whole"; printf '%s\n' "$DATA/$path"; } >"$PATHS"
        rm -f "$WORK/reason"
        preflight
        ends_with_status 1
        [[ -s $WORK/reason ]]
    done
    { cat "$PATHS.whole"; printf '?%s\n' "$DATA/storage/caddy"; } >"$PATHS"
    preflight
    fails_with 1 symlink
}

@test "a path that cannot be read fails the preflight" {
    ((EUID != 0)) || skip 'root reads everything'
    chmod 000 "$DATA/.env"
    preflight
    fails_with 1 "$DATA/.env"
}

# ---------------------------------------------------------------- preflight

# Every file and directory of the deployment and of staging, without those that change when a file
# is added to them.
everything() {
    find "$DATA" "$BACKUP_STAGING" ! -path "$BACKUP_STAGING" ! -path "$WORK" -printf '%p %s %T@\n' \
        | sort
}

@test "preflight writes nothing but that it has ended, and the destination's directories" {
    local before
    before=$(everything)
    preflight
    ends_with_status 0
    [[ $(<"$WORK/ended") == 0 ]]
    rm "$WORK/ended"
    [[ $(everything) == "$before" ]]
    [[ -z $(find "$DESTINATION" -type f) ]]
}

@test "a database that is missing, empty, a directory, a symlink or none fails the preflight" {
    rm "$DATABASE"
    preflight
    fails_with 1 'does not exist'
    : >"$DATABASE"
    preflight
    fails_with 1 '0 bytes'
    printf 'this is not a database at all\n' >"$DATABASE"
    preflight
    fails_with 1 'not an SQLite database'
    rm "$DATABASE"
    mkdir "$DATABASE"
    preflight
    fails_with 1 "$DATABASE"
    rmdir "$DATABASE"
    make_database "$DATA/elsewhere.db"
    ln -s "$DATA/elsewhere.db" "$DATABASE"
    preflight
    fails_with 1 symlink
}

@test "too little space, in staging or at the destination, fails the preflight" {
    local full
    for full in "$BACKUP_STAGING" "$DESTINATION"; do
        printf '#!/usr/bin/env bash\necho Avail\n[[ ${*: -1} == "%s" ]] && %s || %s\n' \
            "$full" 'echo 1000' 'echo 1000000000000' >"$STUB/bin/df"
        chmod +x "$STUB/bin/df"
        preflight
        fails_with 1 "not enough space in $full"
    done
}

@test "the space reckoned with follows the size of the last backup" {
    printf '%s\n' 1000000000000 >"$WORK/expected-bytes"
    printf '#!/bin/sh\necho Avail\necho 1000000000000\n' >"$STUB/bin/df"
    chmod +x "$STUB/bin/df"
    preflight
    fails_with 1 "not enough space in $DESTINATION"
    : >"$WORK/expected-bytes"
    preflight
    ends_with_status 0
}

@test "a destination that cannot be written to fails the preflight" {
    # Root may write everywhere. A failing probe stands for a read-only file system and for a
    # squashed root.
    printf '#!/bin/sh\ncase $* in *%s*) echo "read-only file system" >&2; exit 1 ;; esac\n' \
        "$DESTINATION" >"$STUB/bin/sync"
    chmod +x "$STUB/bin/sync"
    preflight
    fails_with 1 "cannot write to $DESTINATION"
}

@test "an online copy that would stall the tracker's writes is refused, unless that is allowed" {
    truncate -s 4T "$DATABASE" || skip 'no sparse files here'
    printf '#!/bin/sh\necho Avail\necho 900000000000000\n' >"$STUB/bin/df"
    chmod +x "$STUB/bin/df"
    preflight online
    fails_with 1 allow_writer_stall
    preflight copy
    ends_with_status 0
    conf BACKUP_ALLOW_WRITER_STALL true
    preflight online
    ends_with_status 0
}

@test "an online copy of a WAL database stalls nobody" {
    sqlite3 "$DATABASE" 'PRAGMA journal_mode=WAL' >/dev/null
    truncate -s 4T "$DATABASE" || skip 'no sparse files here'
    printf '#!/bin/sh\necho Avail\necho 900000000000000\n' >"$STUB/bin/df"
    chmod +x "$STUB/bin/df"
    preflight online
    ends_with_status 0
}

# ---------------------------------------------------------------- SQLite, stopped or paused

@test "a backup restores to what was there, with gzip" {
    back_up
    restores
    [[ $(final_names | sort) == "config/config_$RUN_ID.tar.gz"$'\n'"sqlite/sqlite_$RUN_ID.db.gz" ]]
    [[ -z $(find "$DESTINATION" -name '*.partial') ]]
}

@test "a backup restores to what was there, with zstd" {
    conf BACKUP_COMPRESSION zstd
    back_up
    restores
    [[ $(final_names | sort) \
        == "config/config_$RUN_ID.tar.zst"$'\n'"sqlite/sqlite_$RUN_ID.db.zst" ]]
    zstd -dcq "$DESTINATION/config/config_$RUN_ID.tar.zst" | tar -tf - | grep -qx .env
}

@test "what is published is what the run manifest will say: sizes, hashes, rows" {
    local name file
    back_up
    for name in "database"$'\t'"sqlite/sqlite_$RUN_ID.db.gz" \
        "config"$'\t'"config/config_$RUN_ID.tar.gz"; do
        file=$DESTINATION/${name#*$'\t'}
        has_result "$(printf 'file\t%s\t%s\t%s' "$name" "$(stat -c %s "$file")" \
            "$(sha256sum <"$file" | cut -c 1-64)")"
    done
    has_result $'table\t3\ttorrents'
    has_result $'table\t1\twhitelist'
    has_result $'table\t0\tkeys'
}

@test "everything that is written is 0600 in 0700" {
    local loose
    umask 022
    back_up
    loose=$(find "$WORK" "$DESTINATION" -mindepth 1 \
        \( -type f -not -perm 600 -o -type d -not -perm 700 \) -not -path "$WORK/expected-*")
    [[ -z $loose ]] || fail "$loose"
}

# watch_live_file: records every call of sqlite.py that names the live file.
watch_live_file() {
    {
        printf '#!/bin/sh\ncase "$*" in *"%s"*)\n' "$DATABASE"
        printf 'echo "opened the live file: $*" >>"$STUB/calls" ;;\nesac\n'
        printf 'exec %s "$@"\n' "$(type -P python3)"
    } >"$STUB/bin/python3"
    chmod +x "$STUB/bin/python3"
}

@test "the live database is never opened or changed" {
    local before
    before=$(find "${DATABASE%/*}" -printf '%p %s %T@ %C@\n')
    watch_live_file
    back_up
    never_called 'opened the live file'
    [[ $(find "${DATABASE%/*}" -printf '%p %s %T@ %C@\n') == "$before" ]]
}

# killed_writer JOURNAL_MODE: commits 5000 more torrents, and dies in a transaction that has already
# reached the files.
killed_writer() {
    mkfifo "$BATS_TEST_TMPDIR/writer"
    sqlite3 "$DATABASE" <"$BATS_TEST_TMPDIR/writer" >/dev/null 3>&- &
    WRITER=$!
    exec {writer}>"$BATS_TEST_TMPDIR/writer"
    printf '%s\n' "PRAGMA journal_mode=$1;" 'PRAGMA cache_size=2;' \
        "INSERT INTO torrents (info_hash, completed) VALUES ('dd', 2);" \
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
            INSERT INTO torrents (info_hash, completed) SELECT 'x' || i, 0 FROM n;" \
        'BEGIN;' 'UPDATE torrents SET completed = 99;' \
        ".shell touch $BATS_TEST_TMPDIR/in-transaction" >&"$writer"
    wait_until 20 test -e "$BATS_TEST_TMPDIR/in-transaction"
    kill -KILL "$WRITER"
    wait "$WRITER" || true
    exec {writer}>&-
}

# The committed rows, all of them, and none of the transaction that the writer died in.
restores_what_was_committed() {
    restores aa1,bb0,cc7,dd2
    holds "$(restored)" 'SELECT count(*), max(completed) FROM torrents' '5004|7'
    has_result $'table\t5004\ttorrents'
}

@test "a hot journal is copied with its database and rolled back in the copy" {
    killed_writer DELETE
    [[ -s $DATABASE-journal ]]
    local before
    before=$(cat "$DATABASE" "$DATABASE-journal" | sha256sum)
    back_up
    restores_what_was_committed
    [[ $(cat "$DATABASE" "$DATABASE-journal" | sha256sum) == "$before" ]]
}

@test "a WAL whose writer was killed is copied with its database: every commit, and no more" {
    killed_writer WAL
    [[ -s $DATABASE-wal ]]
    back_up
    restores_what_was_committed
}

@test "a WAL database without its -shm is backed up" {
    killed_writer WAL
    rm -f "$DATABASE-shm"
    back_up
    restores_what_was_committed
}

@test "a WAL database that was closed cleanly is backed up" {
    sqlite3 "$DATABASE" 'PRAGMA journal_mode=WAL' >/dev/null
    [[ ! -e $DATABASE-wal ]]
    back_up
    restores
}

@test "a journal that PERSIST or TRUNCATE leaves behind is no obstacle" {
    sqlite3 "$DATABASE" "PRAGMA journal_mode=PERSIST;
        INSERT INTO torrents (info_hash, completed) VALUES ('dd', 2)" >/dev/null
    [[ -s $DATABASE-journal ]]
    back_up
    restores aa1,bb0,cc7,dd2
}

@test "an empty journal beside the database is no obstacle" {
    : >"$DATABASE-journal"
    back_up
    restores
}

# reflinks YES_OR_NO: a cp that can share blocks, or cannot, as the file system says.
reflinks() {
    {
        printf '#!/usr/bin/env bash\nprintf "cp %%s\\n" "$*" >>%q\n' "$CALLS"
        printf '[[ $1 != --reflink=always ]] || { [[ %s == yes ]] || exit 1; %s; }\n' "$1" \
            'set -- --reflink=auto "${@:2}"'
        printf 'exec %s "$@"\n' "$(PATH=${PATH#"$STUB/bin:"} type -P cp)"
    } >"$STUB/bin/cp"
    # Not every file system can be written directly.
    {
        printf '#!/usr/bin/env bash\nprintf "dd %%s\\n" "$*" >>%q\n' "$CALLS"
        printf '[[ $* != *oflag=direct* ]] || exit 1\nexec %s "$@"\n' \
            "$(PATH=${PATH#"$STUB/bin:"} type -P dd)"
    } >"$STUB/bin/dd"
    chmod +x "$STUB/bin/cp" "$STUB/bin/dd"
}

@test "a copy that shares blocks with the live file is made its own before the slow work" {
    preflight
    reflinks yes
    step capture copy
    ends_with_status 0
    step finish
    ends_with_status 0
    called_in_order "^cp --reflink=always --no-dereference -- $DATABASE $WORK/database.db" \
        "^dd if=$WORK/database.db of=$WORK/own " \
        "^cp --reflink=never --no-dereference -- $WORK/database.db $WORK/own"
    [[ ! -e $WORK/own ]]
}

@test "a copy that shares nothing is not copied again" {
    preflight
    reflinks no
    step capture copy
    ends_with_status 0
    step finish
    ends_with_status 0
    called_in_order "^cp --reflink=never --no-dereference -- $DATABASE $WORK/database.db"
    never_called "$WORK/own"
}

@test "the copy is written over one from before the window, whatever changed in between" {
    local change insert='INSERT INTO torrents (info_hash, completed)'
    reflinks no
    for change in "UPDATE keys SET key = 'x'" \
        "$(printf "$insert VALUES (hex(randomblob(5000)), 1);%.0s" {1..9})" \
        'DELETE FROM torrents; VACUUM'; do
        preflight_with_room
        ends_with_status 0
        cmp "$DATABASE" "$WORK/room"
        sqlite3 "$DATABASE" "$change"
        step capture copy
        ends_with_status 0
        cmp "$DATABASE" "$WORK/database.db"
        [[ ! -e $WORK/room ]]
        rm "$WORK/database.db"
    done
    never_called "^cp --reflink=never --no-dereference -- $DATABASE $WORK/database.db"
}

@test "where the copy cannot be written over the one before, it is made anew" {
    reflinks no
    preflight_with_room
    [[ -e $WORK/room ]]
    sqlite3 "$DATABASE" "UPDATE keys SET key = 'x'"
    printf '#!/usr/bin/env bash\nexit 1\n' >"$STUB/bin/dd"
    step capture copy
    ends_with_status 0
    called_in_order "^cp --reflink=never --no-dereference -- $DATABASE $WORK/database.db"
    cmp "$DATABASE" "$WORK/database.db"
    [[ ! -e $WORK/room ]]
}

@test "no copy is made beforehand where there is no window" {
    reflinks no
    preflight
    ends_with_status 0
    [[ ! -e $WORK/room ]]
}

@test "no copy is made before the window if blocks are shared, memory is short, or it fails" {
    reflinks yes
    preflight_with_room
    ends_with_status 0
    [[ ! -e $WORK/room ]]
    reflinks no
    for available in 30 0; do
        memory "$available"
        preflight_with_room
        ends_with_status 0
    done
    : >"$BACKUP_MEMORY"
    preflight_with_room
    ends_with_status 0
    rm "$BACKUP_MEMORY"
    preflight_with_room
    ends_with_status 0
    never_called '^dd'
    memory 1000000
    printf '#!/usr/bin/env bash\nhead -c 5 "${1#if=}" >"${2#of=}"\nexit 1\n' >"$STUB/bin/dd"
    preflight_with_room
    ends_with_status 0
    [[ ! -e $WORK/room ]]
    step capture copy
    ends_with_status 0
    called_in_order "^cp --reflink=never --no-dereference -- $DATABASE $WORK/database.db"
}

@test "a journal that is a symlink or a directory is refused" {
    ln -s /etc/passwd "$DATABASE-journal"
    step capture copy
    fails_with 1 "$DATABASE-journal"
    rm "$DATABASE-journal"
    mkdir "$DATABASE-wal"
    step capture copy
    fails_with 1 "$DATABASE-wal"
    nothing_has_a_final_name
}

@test "a database that became a symlink after the preflight is not followed" {
    preflight
    mv "$DATABASE" "$DATA/elsewhere.db"
    ln -s "$DATA/elsewhere.db" "$DATABASE"
    step capture copy
    ends_with_status 1
    [[ ! -e $WORK/database.db ]]
}

@test "a corrupt database fails the run and publishes nothing" {
    sqlite3 "$DATABASE" "
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
        INSERT INTO torrents (info_hash, completed) SELECT hex(randomblob(20)), i FROM n"
    dd if=/dev/urandom of="$DATABASE" bs=4096 seek=20 count=10 conv=notrunc status=none
    step capture copy
    step finish
    fails_with 1 integrity_check
    nothing_has_a_final_name
}

@test "a database that reads well and is wrong all the same fails the run and publishes nothing" {
    sqlite3 "$DATABASE" "PRAGMA writable_schema=ON; UPDATE sqlite_master
        SET sql = replace(sql, 'completed INTEGER', 'completed INTEGER CHECK (completed < 5)')"
    step capture copy
    step finish
    fails_with 1 'integrity_check found: CHECK constraint failed'
    nothing_has_a_final_name
}

@test "a database that was cut short fails the run and publishes nothing" {
    truncate -s 8192 "$DATABASE"
    step capture copy
    step finish
    ends_with_status 1
    nothing_has_a_final_name
}

@test "a first backup without the tracker's tables fails and names them" {
    rm "$DATABASE"
    sqlite3 "$DATABASE" 'CREATE TABLE torrents (id); CREATE TABLE keyss (id)'
    step capture copy
    step finish
    fails_with 1 'lacks the tables: whitelist keys'
    nothing_has_a_final_name
}

@test "a table of the last good run that is gone is a warning, and the backup is published" {
    printf '%s\n' torrents 'torrent aggregate metrics' keys gone >"$WORK/expected-tables"
    sqlite3 "$DATABASE" 'DROP TABLE whitelist'
    back_up
    grep -q $'^warning\t.* lacks the table torrent aggregate metrics, ' "$WORK/result"
    grep -q $'^warning\t.* lacks the table gone, .*tracker-backup acknowledge' "$WORK/result"
    [[ $(grep -c ^warning "$WORK/result") == 2 ]] || fail "$(<"$WORK/result")"
    holds "$(restored)" 'SELECT count(*) FROM torrents' 3
}

@test "a database with none of the tables of the last good run is no backup" {
    printf '%s\n' torrents whitelist keys >"$WORK/expected-tables"
    rm "$DATABASE"
    sqlite3 "$DATABASE" 'CREATE TABLE other (id)'
    step capture copy
    step finish
    fails_with 1 'none of the tables of the last good run: torrents whitelist keys'
    sqlite3 "$DATABASE" 'DROP TABLE other'
    step capture copy
    step finish
    fails_with 1 'none of the tables of the last good run'
    nothing_has_a_final_name
}

@test "rows are counted whatever a table is called" {
    sqlite3 "$DATABASE" "
        CREATE TABLE \"it's\" (a); INSERT INTO \"it's\" VALUES (1), (2);
        CREATE TABLE \"two\"\"quotes\" (a); INSERT INTO \"two\"\"quotes\" VALUES (1);
        CREATE TABLE \"); DROP TABLE keys; --\" (a);
        CREATE TABLE \".shell touch pwned\" (a);
        CREATE TABLE \"-- comment\" (a);
        CREATE TABLE \" spaces \" (a);
        CREATE TABLE \"\$(touch pwned)\" (a);
        CREATE TABLE \"%s\\n\" (a);
        CREATE TABLE \"sqliteX\" (a);
        CREATE TABLE \"ключ\" (a); INSERT INTO \"ключ\" VALUES (1);
        CREATE TABLE \"line
.shell touch pwned
end\" (a); INSERT INTO \"line
.shell touch pwned
end\" VALUES (1);
        CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT)"
    back_up
    has_result $'table\t2\tit\'s'
    has_result $'table\t1\ttwo"quotes'
    has_result $'table\t0\t); DROP TABLE keys; --'
    has_result $'table\t0\t.shell touch pwned'
    has_result $'table\t0\t-- comment'
    has_result $'table\t0\t spaces '
    has_result $'table\t0\t$(touch pwned)'
    has_result $'table\t0\t%s\\n'
    has_result $'table\t0\tsqliteX'
    has_result $'table\t1\tключ'
    has_result $'table\t1\tline .shell touch pwned end'
    has_result $'table\t3\ttorrents'
    [[ $(grep -c ^table "$WORK/result") == 15 ]] || fail "$(<"$WORK/result")"
    [[ ! -e pwned && ! -e $WORK/pwned ]]
}

# name_super_journal JOURNAL FILE: ends the journal as if the transaction spanned several databases.
name_super_journal() {
    python3 - "$1" "$2" <<'END'
import struct, sys
name = sys.argv[2].encode()
with open(sys.argv[1], "r+b") as journal:
    magic = journal.read(8)
    journal.seek(0, 2)
    journal.write(struct.pack(">I", (1 << 30) // 4096 + 1) + name)
    journal.write(struct.pack(">II", len(name), sum(name)) + magic)
END
}

@test "a hot journal that names another file is rolled back, and that file stays" {
    local victim=$DESTINATION/sqlite/older.db.gz alone=$BATS_TEST_TMPDIR/alone.db
    mkdir -p "$DESTINATION/sqlite"
    printf precious >"$victim"
    killed_writer DELETE
    name_super_journal "$DATABASE-journal" "$victim"
    # SQLite alone deletes the file.
    cp "$DATABASE" "$alone"
    cp "$DATABASE-journal" "$alone-journal"
    holds "$alone" 'PRAGMA integrity_check' ok
    [[ ! -e $victim ]]
    printf precious >"$victim"
    back_up
    [[ $(<"$victim") == precious ]]
    restores_what_was_committed
    grep -q $'^warning\t.* captured database names another file; the name is ignored' \
        "$WORK/result"
    rm "$DESTINATION"/{sqlite/sqlite,config/config}_*
    conf BACKUP_SCOPE exclude-statistics
    back_up
    [[ $(<"$victim") == precious ]]
}

# sqlite_program ARGUMENT...: the program by itself.
sqlite_program() { run python3 -I -B "${BACKUP%/*}/tracker_backup/worker/sqlite.py" "$@"; }

@test "a captured set with a link, a pipe or a directory in it is refused and left alone" {
    local captured=$BATS_TEST_TMPDIR/captured.db victim=$BATS_TEST_TMPDIR/victim suffix
    printf precious >"$victim"
    for suffix in -journal -wal -shm; do
        make_database "$captured"
        ln -s "$victim" "$captured$suffix"
        sqlite_program check "$captured"
        ends_with_status 3
        rm "$captured$suffix"
        ln "$victim" "$captured$suffix"
        sqlite_program check "$captured"
        ends_with_status 3
        rm "$captured$suffix"
        mkfifo "$captured$suffix"
        sqlite_program check "$captured"
        ends_with_status 3
        rm "$captured$suffix"
        mkdir "$captured$suffix"
        sqlite_program check "$captured"
        ends_with_status 3
        rm -r "$captured$suffix" "$captured"
    done
    [[ $(<"$victim") == precious ]]
}

@test "a live database or log that is a link to another database is not read" {
    local other=$BATS_TEST_TMPDIR/other.db copied=$BATS_TEST_TMPDIR/copied.db command
    make_database "$other"
    ln -s "$other" "$DATA/link.db"
    for command in copy excerpt; do
        sqlite_program "$command" "$DATA/link.db" "$copied"
        ends_with_status 3
        output_has 'leads to other files than its own'
    done
    killed_writer WAL
    mv "$DATABASE-wal" "$BATS_TEST_TMPDIR/another-wal"
    ln -s "$BATS_TEST_TMPDIR/another-wal" "$DATABASE-wal"
    sqlite_program copy "$DATABASE" "$copied"
    [[ $status != 0 ]]
}

@test "the text of a schema can do no more than make its own object" {
    local text hostile victim=$BATS_TEST_TMPDIR/victim
    printf precious >"$victim"
    for text in "; CREATE TABLE pwned (a)" ";
.shell touch $BATS_TEST_TMPDIR/pwned" ";
.output $victim" ";
.trace $victim"; do
        hostile=$BATS_TEST_TMPDIR/hostile.db
        rm -f "$hostile"
        make_database "$hostile" "PRAGMA writable_schema=ON;
            UPDATE sqlite_master SET sql = sql || '$text' WHERE name = 'keys'"
        sqlite_program excerpt "$hostile" "$BATS_TEST_TMPDIR/excerpt.db"
        ends_with_status 3
        output_has 'the table keys cannot be made again from the text in sqlite_master'
    done
    for text in "ATTACH ''$victim'' AS other" "PRAGMA main.user_version=7" \
        "VACUUM INTO ''$victim''" "CREATE TABLE other (a)" "CREATE TABLE live.keys (a)" \
        "CREATE TEMP TABLE keys (a)" "CREATE VIEW keys AS SELECT 1" "DROP TABLE torrents" \
        "CREATE TABLE keys AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i FROM n)
            SELECT * FROM n" "CREATE TABLE keys AS SELECT * FROM torrents" \
        "INSERT INTO torrents VALUES (9, 9, 9)" "SELECT load_extension(''x'')" \
        "CREATE TABLE keys (a CHECK (load_extension(a)))" "COMMIT" \
        "CREATE TABLE keys (a DEFAULT (fts3_tokenizer(''x'')))"; do
        rm -f "$hostile"
        make_database "$hostile" "PRAGMA writable_schema=ON;
            UPDATE sqlite_master SET sql = '$text' WHERE name = 'keys'"
        sqlite_program excerpt "$hostile" "$BATS_TEST_TMPDIR/excerpt.db"
        [[ $status == [13] ]] || fail "accepted: $text"
    done
    [[ $(<"$victim") == precious && ! -e $BATS_TEST_TMPDIR/pwned ]]
}

@test "rows of a view are not read, and an excerpt cannot fill the disk" {
    local hostile=$BATS_TEST_TMPDIR/hostile.db excerpt=$BATS_TEST_TMPDIR/excerpt.db case values
    values="(VALUES (1)$(printf ', (1)%.0s' {1..399}))"
    for case in sequence twin stored; do
        rm -f "$hostile"
        make_database "$hostile"
        CROSS="$values, $values, $values, $values, $values, $values" python3 - "$hostile" "$case" \
            <<'END'
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA writable_schema=ON")
def row(*values):
    database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", values)
select = "SELECT hex(zeroblob(500)) AS name, 1 AS seq FROM " + os.environ["CROSS"]
if sys.argv[2] == "sequence":
    row("view", "sqlite_sequence", "sqlite_sequence", 0, "CREATE VIEW sqlite_sequence AS " + select)
elif sys.argv[2] == "twin":
    row("view", "v", "v", 0, "CREATE VIEW v AS " + select)
    row("table", "v", "v", 2, "CREATE TABLE IF NOT EXISTS v (name, seq)")
else:
    database.execute("CREATE TABLE g (a)")
    database.executemany("INSERT INTO g VALUES (?)", [(number,) for number in range(100)])
    stored = "CREATE TABLE g (a, b AS (zeroblob(20000000)) STORED)"
    database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'g'", (stored,))
END
        run "$TIMEOUT" 20 bash -c "ulimit -f 200000; python3 -I -B \
            '${BACKUP%/*}/tracker_backup/worker/sqlite.py' excerpt '$hostile' '$excerpt'"
        [[ $status == [13] ]] || fail "$case ended with $status: $output"
    done
    # The last database is the one with stored columns; the one before is a view with a twin.
    [[ ! -e $excerpt || $(stat -c %s "$excerpt") -lt 100000000 ]]
}

@test "no name of a table makes a second line, and names are short" {
    local long
    long=$(printf 'x%.0s' {1..3000})
    sqlite3 "$DATABASE" "CREATE TABLE \"$long\" (a);
        CREATE TABLE \"a$(printf '\r\v\f\033[31m\302\205\342\200\250')b\" (a);"
    back_up
    has_result $'table\t0\t'"${long:0:256}"
    has_result $'table\t0\ta    [31m  b'
    [[ $(grep -c ^table "$WORK/result") == 5 ]]
}

@test "a query of a view that never ends is not counted as a table" {
    sqlite3 "$DATABASE" "PRAGMA writable_schema=ON; CREATE TABLE endless (i);
        UPDATE sqlite_master SET type = 'table', sql = 'CREATE VIEW endless AS WITH RECURSIVE
            n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n'
        WHERE name = 'endless'"
    sqlite_program count "$DATABASE"
    ends_with_status 1
}

@test "the tables of a database with very many are all found" {
    local i
    for ((i = 0; i < 2000; i++)); do
        printf 'CREATE TABLE a_table_with_a_rather_long_name_%d (a);\n' "$i"
    done | { echo 'BEGIN;'; cat; echo 'COMMIT;'; } | sqlite3 "$DATABASE"
    printf '%s\n' a_table_with_a_rather_long_name_{0,1,2,3,4,5,6,7,8,9} >"$WORK/expected-tables"
    back_up
    has_result $'table\t0\ta_table_with_a_rather_long_name_1999'
}

@test "an existing backup of that name is not overwritten, and nothing is published beside it" {
    mkdir -p "$DESTINATION"/{sqlite,config}
    printf 'precious\n' >"$DESTINATION/config/config_$RUN_ID.tar.gz"
    preflight
    step capture copy
    step finish
    fails_with 1 'is there already'
    [[ $(<"$DESTINATION/config/config_$RUN_ID.tar.gz") == precious ]]
    [[ $(final_names) == "config/config_$RUN_ID.tar.gz" ]] || fail "$(final_names)"
}

# failing_tool NAME CODE: it does its work, and then fails.
failing_tool() {
    printf '#!/bin/sh\n%s "$@"\nexit %s\n' "$(PATH=${PATH#"$STUB/bin:"} type -P "$1")" "$2" \
        >"$STUB/bin/$1"
    chmod +x "$STUB/bin/$1"
}

@test "a compressor that fails publishes nothing" {
    failing_tool pigz 1
    preflight
    step capture copy
    step finish
    fails_with 1 compressing
    nothing_has_a_final_name
}

@test "a disk that is full while compressing publishes nothing" {
    printf '%s\n' '#!/bin/sh' 'case $* in *--test*) exit 0 ;; esac' 'head -c 100' \
        'echo "No space left on device" >&2' 'exit 1' >"$STUB/bin/pigz"
    chmod +x "$STUB/bin/pigz"
    preflight
    step capture copy
    step finish
    ends_with_status 1
    output_has 'No space left on device'
    nothing_has_a_final_name
}

@test "a compressed file that does not read back publishes nothing" {
    printf '#!/bin/sh\ncase $* in *--test*) exec %s "$@" ;; esac\n%s "$@" | head -c 60\n' \
        "$(type -P pigz)" "$(type -P pigz)" >"$STUB/bin/pigz"
    chmod +x "$STUB/bin/pigz"
    preflight
    step capture copy
    step finish
    ends_with_status 1
    nothing_has_a_final_name
}

@test "tar that fails publishes nothing; a file that changed while it was read is a warning" {
    failing_tool tar 2
    preflight
    step capture copy
    step finish
    fails_with 1 'tar failed with exit code 2'
    nothing_has_a_final_name
    failing_tool tar 1
    rm "$WORK"/{result,reason}
    step finish
    ends_with_status 0
    grep -q $'^warning\t.*changed' "$WORK/result"
}

@test "a final name appears only after the whole file was synced, and its directory after that" {
    printf '#!/bin/sh\necho "sync $* $(ls %s/sqlite %s/config | tr "\\n" " ")" >>"$STUB/calls"\n' \
        "$DESTINATION" "$DESTINATION" >"$STUB/bin/sync"
    chmod +x "$STUB/bin/sync"
    back_up
    called_in_order "sync -- .*sqlite_$RUN_ID.db.gz.partial .*sqlite_$RUN_ID.db.gz.partial" \
        "sync -- .*config_$RUN_ID.tar.gz.partial" \
        "sync -- $DESTINATION/sqlite .*sqlite_$RUN_ID.db.gz " "sync -- $DESTINATION/config "
}

# ---------------------------------------------------------------- SQLite, online

# writing: a writer that commits one row after the other, until it is killed.
writing() {
    (while true; do
        sqlite3 -cmd '.timeout 5000' "$DATABASE" \
            "INSERT INTO torrents (info_hash, completed) VALUES (hex(randomblob(20)), 1)"
    done) >/dev/null 2>&1 3>&- &
    WRITER=$!
    wait_until 10 more_than_three_torrents
}

more_than_three_torrents() {
    (($(sqlite3 -readonly -cmd '.timeout 5000' "$DATABASE" 'SELECT count(*) FROM torrents') > 3))
}

@test "an online copy beside a writer in rollback mode is whole" {
    export BACKUP_ONLINE_RETRY_SECONDS=20
    writing
    back_up online
    holds "$(restored)" 'PRAGMA integrity_check' ok
    holds "$(restored)" "SELECT count(*) > 3 FROM torrents" 1
}

@test "an online copy beside a writer in WAL mode is whole" {
    export BACKUP_ONLINE_RETRY_SECONDS=20
    sqlite3 "$DATABASE" 'PRAGMA journal_mode=WAL' >/dev/null
    writing
    back_up online
    holds "$(restored)" 'PRAGMA integrity_check' ok
    holds "$(restored)" "SELECT count(*) > 3 FROM torrents" 1
}

@test "an online copy holds what is committed, not what a writer has in hand" {
    sqlite3 "$DATABASE" 'PRAGMA journal_mode=WAL' >/dev/null
    mkfifo "$BATS_TEST_TMPDIR/writer"
    sqlite3 "$DATABASE" <"$BATS_TEST_TMPDIR/writer" >/dev/null 3>&- &
    WRITER=$!
    exec {writer}>"$BATS_TEST_TMPDIR/writer"
    printf '%s\n' "BEGIN; UPDATE torrents SET completed = 99;" \
        ".shell touch $BATS_TEST_TMPDIR/in-transaction" >&"$writer"
    wait_until 20 test -e "$BATS_TEST_TMPDIR/in-transaction"
    back_up online {writer}>&-
    restores
    exec {writer}>&-
}

@test "an online copy of a database that stays locked fails and says so" {
    mkfifo "$BATS_TEST_TMPDIR/writer"
    sqlite3 "$DATABASE" <"$BATS_TEST_TMPDIR/writer" >/dev/null 3>&- &
    WRITER=$!
    exec {writer}>"$BATS_TEST_TMPDIR/writer"
    printf '%s\n' "BEGIN EXCLUSIVE;" ".shell touch $BATS_TEST_TMPDIR/in-transaction" >&"$writer"
    wait_until 20 test -e "$BATS_TEST_TMPDIR/in-transaction"
    step capture online {writer}>&-
    exec {writer}>&-
    fails_with 1 'locked'
    nothing_has_a_final_name
}

# ---------------------------------------------------------------- SQLite, without statistics

# elaborate_database: the tracker's tables, and all else that a database can have.
elaborate_database() {
    conf BACKUP_SCOPE exclude-statistics
    rm "$DATABASE"
    # Settings, then tables, rows, the rest.
    sqlite3 "$DATABASE" "
        PRAGMA page_size=8192; PRAGMA encoding='UTF-16le'; PRAGMA auto_vacuum=INCREMENTAL;
        PRAGMA user_version=-7; PRAGMA application_id=1234;
        CREATE TABLE dropped (id INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE dropped;
        CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT,
            info_hash VARCHAR(40) NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL);
        CREATE INDEX \"by \"\"completed\"\"\" ON torrents (completed) WHERE completed > 0;
        CREATE TABLE whitelist (id INTEGER PRIMARY KEY AUTOINCREMENT,
            info_hash VARCHAR(40) NOT NULL UNIQUE);
        CREATE TABLE keys (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
            valid_until INTEGER) STRICT;
        CREATE TABLE \"it's \"\"a\"\"
.shell touch pwned; \$(touch pwned)\" (\"a \"\"b\"\"'; --\" TEXT, completed INTEGER);
        CREATE TABLE \"%Q;%s\" (a, b AS (a * 2), c AS (a * 3) STORED, d BLOB);
        CREATE TABLE flat (a TEXT, b, PRIMARY KEY (b, a)) WITHOUT ROWID; -- with a comment
        CREATE INDEX by_expression ON flat (lower(a));
        INSERT INTO torrents (info_hash, completed)
            VALUES ('aa', 1), ('bb', 0), ('cc', 7), ('dd', 0), ('ee', 0);
        DELETE FROM torrents WHERE info_hash = 'ee';
        INSERT INTO whitelist (info_hash) VALUES ('aa'), ('bb');
        INSERT INTO keys (id, key, valid_until) VALUES (41, 'k', NULL);
        DELETE FROM keys WHERE id = 41;
        INSERT INTO keys (key) VALUES ('l');
        INSERT INTO \"it's \"\"a\"\"
.shell touch pwned; \$(touch pwned)\" VALUES ('line
.shell touch pwned', 0), (NULL, 1);
        INSERT INTO \"%Q;%s\" (a, d) VALUES (1, x'00ff0a'), ('ключ', 1e300), (NULL, -0.5);
        INSERT INTO flat VALUES ('x', 2), ('', 0), ('X', 1);
        ANALYZE;
        CREATE VIEW completed AS SELECT * FROM torrents WHERE completed > 0;
        CREATE TRIGGER no_more BEFORE INSERT ON torrents
            BEGIN SELECT RAISE(ABORT, 'a trigger fired'); END;
        CREATE TRIGGER through_the_view INSTEAD OF DELETE ON completed
            BEGIN DELETE FROM torrents WHERE id = OLD.id; END;"
    sqlite3 "$DATABASE" 'CREATE VIEW commented AS SELECT 1 -- to its end'
}

# settings FILE: what a database has beside its schema.
settings() {
    sqlite3 "$1" 'PRAGMA page_size; PRAGMA encoding; PRAGMA auto_vacuum; PRAGMA user_version;
        PRAGMA application_id; PRAGMA journal_mode'
}

# Restoring gives the live database, but for the torrents that were never completed.
restores_an_excerpt() {
    local file expected=$BATS_TEST_TMPDIR/expected.db
    file=$(restored)
    holds "$file" 'PRAGMA integrity_check' ok
    cp "$DATABASE" "$expected"
    [[ ! -e $DATABASE-wal ]] || cp "$DATABASE-wal" "$expected-wal"
    diff <(settings "$expected") <(settings "$file")
    sqlite3 "$expected" 'DELETE FROM torrents WHERE completed = 0; ANALYZE'
    diff <(sqlite3 "$expected" .dump | sort) <(sqlite3 "$file" .dump | sort)
    holds "$file" 'SELECT group_concat(info_hash) FROM torrents' aa,cc
    holds "$file" "SELECT seq FROM sqlite_sequence WHERE name = 'torrents'" 5
    holds "$file" "SELECT seq FROM sqlite_sequence WHERE name = 'keys'" 42
    has_result $'table\t2\ttorrents'
    has_result $'table\t2\twhitelist'
    [[ -z $(find "$BATS_TEST_TMPDIR" . -maxdepth 2 -name '*pwned*') ]]
    [[ -z $(find "$WORK" -name 'whole.db*') ]]
}

@test "an excerpt of a copy has every row, but for torrents that were never completed" {
    elaborate_database
    back_up
    restores_an_excerpt
    grep -q $'^duration\texcerpt\t' "$WORK/result"
}

@test "an excerpt taken online is the same" {
    elaborate_database
    back_up online
    restores_an_excerpt
}

@test "an excerpt of a WAL database is one" {
    elaborate_database
    sqlite3 "$DATABASE" 'PRAGMA journal_mode=WAL' >/dev/null
    back_up
    restores_an_excerpt
    rm -rf "$WORK"/{result,database.db} "${DESTINATION:?}"/*
    back_up online
    restores_an_excerpt
}

@test "an excerpt has the journal's part of a copied database" {
    conf BACKUP_SCOPE exclude-statistics
    killed_writer DELETE
    back_up
    restores aa1,cc7,dd2
    holds "$(restored)" 'SELECT count(*) FROM torrents' 3
}

@test "the live database is never opened for an excerpt of a copy" {
    elaborate_database
    watch_live_file
    back_up
    never_called 'opened the live file'
}

@test "an excerpt taken online does not change the live database, whatever it is called" {
    local before name="a b'c\"d%41?mode=rwc#\$(touch $BATS_TEST_TMPDIR/pwned).db"
    name=${name//\//_}
    elaborate_database
    mv "$DATABASE" "${DATABASE%/*}/$name"
    DATABASE=${DATABASE%/*}/$name
    conf DB_PATH "$DATABASE"
    before=$(find "${DATABASE%/*}" -printf '%p %s %T@\n')
    back_up online
    [[ $(find "${DATABASE%/*}" -printf '%p %s %T@\n') == "$before" ]]
    restores_an_excerpt
}

@test "an excerpt taken online beside a writer is whole" {
    export BACKUP_ONLINE_RETRY_SECONDS=20
    conf BACKUP_SCOPE exclude-statistics
    writing
    back_up online
    holds "$(restored)" 'PRAGMA integrity_check' ok
    holds "$(restored)" 'SELECT count(*) > 3, min(completed) FROM torrents' '1|1'
}

@test "an excerpt of a database that stays locked fails and says so" {
    conf BACKUP_SCOPE exclude-statistics
    mkfifo "$BATS_TEST_TMPDIR/writer"
    sqlite3 "$DATABASE" <"$BATS_TEST_TMPDIR/writer" >/dev/null 3>&- &
    WRITER=$!
    exec {writer}>"$BATS_TEST_TMPDIR/writer"
    printf '%s\n' "BEGIN EXCLUSIVE;" ".shell touch $BATS_TEST_TMPDIR/in-transaction" >&"$writer"
    wait_until 20 test -e "$BATS_TEST_TMPDIR/in-transaction"
    step capture online {writer}>&-
    exec {writer}>&-
    fails_with 1 'locked'
    nothing_has_a_final_name
}

@test "a schema that changes while an excerpt is taken is read again" {
    export BACKUP_ONLINE_RETRY_SECONDS=20
    elaborate_database
    # After the settings have been read for the first time, a table is added.
    cat >"$STUB/changing.py" <<'END'
import os, runpy, sqlite3, sys
sys.argv = sys.argv[1:]
program, flag = sys.argv[0], os.environ["STUB"] + "/added"
connect = sqlite3.connect
def changing(name, *arguments, **options):
    if "mode=rwc" in name and not os.path.exists(flag):
        open(flag, "w").close()
        with connect(sys.argv[2]) as live:
            live.execute("CREATE TABLE added (a)")
    return connect(name, *arguments, **options)
sqlite3.connect = changing
runpy.run_path(program, run_name="__main__")
END
    # Calls with code on the command line (-c) are not the program's.
    printf '#!/bin/sh\n[ "$3" = -c ] && exec %s "$@"\nshift 2\nexec %s "%s" "$@"\n' \
        "$(type -P python3)" "$(type -P python3)" "$STUB/changing.py" >"$STUB/bin/python3"
    chmod +x "$STUB/bin/python3"
    back_up online
    [[ -e $STUB/added ]]
    restores_an_excerpt
    has_result $'table\t0\tadded'
}

@test "a schema whose text holds more than its statement is not obeyed" {
    conf BACKUP_SCOPE exclude-statistics
    sqlite3 "$DATABASE" "PRAGMA writable_schema=ON;
        UPDATE sqlite_master
        SET sql = sql || ';' || char(10) || '.shell touch $BATS_TEST_TMPDIR/pwned'
        WHERE name = 'keys'"
    step capture copy
    step finish
    ends_with_status 1
    [[ -s $WORK/reason ]]
    step capture online
    ends_with_status 1
    nothing_has_a_final_name
    [[ ! -e $BATS_TEST_TMPDIR/pwned ]]
}

@test "a database with a virtual table is refused for an excerpt, and what to do is said" {
    conf BACKUP_SCOPE exclude-statistics
    sqlite3 "$DATABASE" 'CREATE VIRTUAL TABLE words USING fts5(word)'
    step capture copy
    step finish
    fails_with 1 'virtual tables (words)'
    reason_has database_scope
    step capture online
    fails_with 1 'virtual tables (words)'
    nothing_has_a_final_name
    conf BACKUP_SCOPE full
    rm -rf "${WORK:?}"/*
    touch "$WORK"/expected-{tables,bytes}
    back_up
    restores
}

@test "torrents without a column completed fail an excerpt, and the reason is said" {
    conf BACKUP_SCOPE exclude-statistics
    sqlite3 "$DATABASE" 'ALTER TABLE torrents RENAME COLUMN completed TO finished'
    step capture copy
    step finish
    fails_with 1 completed
    nothing_has_a_final_name
}

@test "a corrupt database fails an excerpt of a copy" {
    conf BACKUP_SCOPE exclude-statistics
    sqlite3 "$DATABASE" "
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
        INSERT INTO torrents (info_hash, completed) SELECT hex(randomblob(20)), i FROM n"
    dd if=/dev/urandom of="$DATABASE" bs=4096 seek=20 count=10 conv=notrunc status=none
    step capture copy
    step finish
    fails_with 1 integrity_check
    nothing_has_a_final_name
}

@test "a copy that becomes an excerpt needs space for both" {
    truncate -s 1G "$DATABASE" || skip 'no sparse files here'
    printf '#!/bin/sh\necho Avail\necho 1700000000\n' >"$STUB/bin/df"
    chmod +x "$STUB/bin/df"
    printf '%s\n' 1000 >"$WORK/expected-bytes"
    preflight
    ends_with_status 0
    conf BACKUP_SCOPE exclude-statistics
    preflight
    fails_with 1 "not enough space in $BACKUP_STAGING"
    conf BACKUP_ALLOW_WRITER_STALL true
    preflight online
    ends_with_status 0
}

# ---------------------------------------------------------------- the archive

@test "members are relative, with their owners and modes, directories with and without content" {
    chmod 640 "$DATA/.env"
    chmod 2770 "$DATA/storage/tracker/lib"
    printf 'big\n' >"$DATA/storage/tracker/log/tracker.log"
    if ((EUID == 0)); then
        chown 1000:1001 "$DATA/.env"
        chown 472:0 "$DATA/storage/tracker/lib"
    fi
    back_up
    members v | grep -E "^-rw-r----- $(stat -c %u/%g "$DATA/.env") .* \.env$"
    owner=$(stat -c %u/%g "$DATA/storage/tracker/lib")
    members v | grep -E "^drwxrws--- $owner .* storage/tracker/lib/$"
    has_member docker-compose.yml
    has_member storage/tracker/etc/
    has_member storage/tracker/etc/tracker.toml
    has_member storage/tracker/log/
    ! members | grep -E 'tracker\.(log|db)' || fail 'what is none of the archive is in it'
    ! members | grep -E '^/|\.\.' || fail 'not relative'
}

@test "the archive restores onto an empty machine" {
    local empty=$BATS_TEST_TMPDIR/empty
    chmod 600 "$DATA/storage/tracker/etc/tracker.toml"
    back_up
    mkdir "$empty"
    gzip -dc "$DESTINATION/config/config_$RUN_ID.tar.gz" | tar -xpf - --numeric-owner -C "$empty"
    diff -r "$DATA/storage/tracker/etc" "$empty/storage/tracker/etc"
    cmp "$DATA/.env" "$empty/.env"
    [[ -d $empty/storage/tracker/lib ]]
    [[ $(stat -c %a "$empty/storage/tracker/etc/tracker.toml") == 600 ]]
}

@test "symlinks inside a directory are archived as such and never followed" {
    ln -s /etc/passwd "$DATA/storage/tracker/etc/outside"
    ln -s ../../../.. "$DATA/storage/tracker/etc/up"
    back_up
    members v | grep -q 'etc/outside -> /etc/passwd$'
    ! members | grep -q 'etc/up/' || fail 'followed'
}

@test "files with every kind of name are archived" {
    local name
    for name in 'with space' "it's" 'dou"ble' -n --checkpoint-action=exec=sh $'new\nline' \
        'back\slash' '*' 'ключ' "$(printf 'not-utf8-\377')"; do
        printf 'x' >"$DATA/storage/tracker/etc/$name"
    done
    back_up
    mkdir "$BATS_TEST_TMPDIR/empty"
    gzip -dc "$DESTINATION/config/config_$RUN_ID.tar.gz" | tar -xpf - -C "$BATS_TEST_TMPDIR/empty"
    diff -r "$DATA/storage/tracker/etc" "$BATS_TEST_TMPDIR/empty/storage/tracker/etc"
}

@test "paths of the list with spaces, quotes and a leading dash are archived" {
    mkdir "$DATA/-a dir's \"name\""
    touch "$DATA/-a dir's \"name\"/file"
    printf '%s\n' "$DATA/-a dir's \"name\"" "dir:$DATA/-a dir's \"name\"" >>"$PATHS"
    back_up
    has_member "-a dir's \"name\"/file"
}

@test "a path list without directories is archived" {
    sed -i /^dir:/d "$PATHS"
    back_up
    has_member .env
}

@test "a database of the path list is captured by SQLite, with its owner and mode" {
    local grafana=$DATA/storage/grafana/data/grafana.db
    mkdir -p "${grafana%/*}"
    sqlite3 "$grafana" 'PRAGMA journal_mode=WAL; CREATE TABLE dashboards (a);
        INSERT INTO dashboards VALUES (42)' >/dev/null
    chmod 640 "$grafana"
    ((EUID != 0)) || chown 472:473 "$grafana"
    printf '%s\n' "dir:$DATA/storage/grafana/data" "sqlite:$grafana" >>"$PATHS"
    mkfifo "$BATS_TEST_TMPDIR/writer"
    sqlite3 "$grafana" <"$BATS_TEST_TMPDIR/writer" >/dev/null 3>&- &
    WRITER=$!
    exec {writer}>"$BATS_TEST_TMPDIR/writer"
    printf '%s\n' "INSERT INTO dashboards VALUES (43); BEGIN; UPDATE dashboards SET a = 0;" \
        ".shell touch $BATS_TEST_TMPDIR/in-transaction" >&"$writer"
    wait_until 20 test -e "$BATS_TEST_TMPDIR/in-transaction"
    back_up copy {writer}>&-
    exec {writer}>&-
    members v \
        | grep -E "^-rw-r----- $(stat -c %u/%g "$grafana") .* storage/grafana/data/grafana.db$"
    ! members | grep -E 'grafana.db-(wal|shm)' || fail 'copied live'
    mkdir "$BATS_TEST_TMPDIR/empty"
    gzip -dc "$DESTINATION/config/config_$RUN_ID.tar.gz" | tar -xf - -C "$BATS_TEST_TMPDIR/empty"
    holds "$BATS_TEST_TMPDIR/empty/storage/grafana/data/grafana.db" \
        'SELECT sum(a) FROM dashboards' 85
}

@test "a database of the path list may have quotes and spaces in its name" {
    make_database "$DATA/storage/it's \"a\" db.sqlite"
    printf '%s\n' "sqlite:$DATA/storage/it's \"a\" db.sqlite" >>"$PATHS"
    back_up
    has_member "storage/it's \"a\" db.sqlite"
}

@test "a database of the path list that is corrupt or a symlink fails the run" {
    printf 'SQLite format 3\0 but no more than that\n' >"$DATA/grafana.db"
    printf '%s\n' "sqlite:$DATA/grafana.db" >>"$PATHS"
    step capture copy
    step finish
    ends_with_status 1
    [[ -s $WORK/reason ]]
    nothing_has_a_final_name
    rm "$DATA/grafana.db"
    ln -s "$DATABASE" "$DATA/grafana.db"
    step finish
    fails_with 1 symlink
    nothing_has_a_final_name
}

# ---------------------------------------------------------------- MySQL

@test "MySQL: what is published is the dump, byte for byte, and its rows are counted" {
    use_mysql
    back_up
    cmp <(gzip -dc "$DESTINATION/mysql/mysql_$RUN_ID.sql.gz") "$STUB/dump"
    has_result $'table\t3\ttorrents'
    has_result $'table\t2\twhitelist'
    has_result $'table\t0\tkeys'
    has_result $'table\t1\tit\'s `quoted`'
    [[ $(grep -c ^table "$WORK/result") == 4 ]] || fail "$(<"$WORK/result")"
    has_member .env
}

@test "MySQL: the dump is taken in one transaction, whole, without a privilege that users lack" {
    local option
    use_mysql
    back_up
    for option in --single-transaction --quick --no-tablespaces --routines --triggers --events \
        --hex-blob; do
        was_called "^mariadb-dump .*$option"
    done
    was_called '^mariadb-dump --defaults-file=.* torrust$'
}

@test "MySQL: the password is in a 0600 file, and in no argument, environment or log" {
    use_mysql 's3cret-"quoted"\back'
    back_up online
    ! grep -r -e s3cret "$CALLS" "$STUB/environment" "$WORK" "$DESTINATION" \
        || fail 'the password is out'
    output_lacks s3cret
    grep -qxF 'password="s3cret-\"quoted\"\\back"' "$STUB/client.cnf" \
        || fail "$(<"$STUB/client.cnf")"
    [[ $(stat -c %a "$STUB/client.cnf") == 600 ]]
}

@test "MySQL: no password is executed" {
    use_mysql
    back_up
    [[ ! -e $BATS_TEST_TMPDIR/pwned ]]
    grep -qF "ss\$(touch $BATS_TEST_TMPDIR/pwned) '#;=%\"" "$STUB/client.cnf" \
        || fail "$(<"$STUB/client.cnf")"
}

@test "MySQL: a secret that is not there ends with 2" {
    use_mysql
    rm "$BATS_TEST_TMPDIR/db_password"
    preflight
    fails_with 2 db_password
    never_called '^mariadb'
}

@test "MySQL: TLS is always on; unverified and verified are what the options say" {
    use_mysql
    back_up
    grep -qx ssl "$STUB/client.cnf"
    grep -qx skip-ssl-verify-server-cert "$STUB/client.cnf"
    conf DB_TLS verified
    conf DB_TLS_CA_FILE /etc/backup/ca.pem
    step preflight copy
    step capture copy
    grep -qx ssl-verify-server-cert "$STUB/client.cnf"
    grep -qx 'ssl-ca="/etc/backup/ca.pem"' "$STUB/client.cnf"
    ! grep -q skip-ssl "$STUB/client.cnf" || fail "$(<"$STUB/client.cnf")"
}

@test "MySQL: a server that cannot be reached fails the preflight with its message" {
    use_mysql
    on query 'echo "ERROR 2002 (HY000): Can not connect to server on mysql" >&2; exit 1'
    preflight
    ends_with_status 1
    [[ "$output $(<"$WORK/reason")" == *'ERROR 2002'* ]] || fail 'the reason is lost'
}

@test "MySQL: before the first backup, a user who does not see every table is refused" {
    use_mysql
    printf '%s\n' torrents keyss >"$STUB/tables"
    preflight
    fails_with 1 'user tracker sees it, lacks the tables: whitelist keys'
    printf '%s\n' torrents whitelist keyss >"$STUB/tables"
    preflight
    fails_with 1 'lacks the tables: keys'
}

@test "MySQL: a table of the last good run that the user does not see is a warning" {
    use_mysql
    printf '%s\n' torrents whitelist keys gone >"$WORK/expected-tables"
    preflight
    ends_with_status 0
    output_has 'WARNING: database torrust, as user tracker sees it, lacks the table gone'
    step capture online
    step finish
    ends_with_status 0
    [[ $(grep -c $'^warning\t.* lacks the table gone, ' "$WORK/result") == 1 ]]
    printf '%s\n' other >"$STUB/tables"
    preflight
    fails_with 1 'none of the tables of the last good run'
    : >"$STUB/tables"
    preflight
    fails_with 1 'none of the tables of the last good run'
}

@test "MySQL: no answer of the server is evaluated" {
    local answer query
    use_mysql
    for query in user_privileges data_length; do
        for answer in "a[\$(touch $BATS_TEST_TMPDIR/pwned)]" '1 + 1' -1 '' 1e3 0x10 08 \
            99999999999999999999; do
            on query "[[ \$* != *$query* ]] || { printf '%s\\n' '$answer'; exit 0; }"
            rm -f "$WORK/reason"
            preflight
            fails_with 1 'is not a whole number'
        done
    done
    [[ ! -e $BATS_TEST_TMPDIR/pwned ]]
}

@test "no number from a file or a program is evaluated" {
    printf 'a[$(touch %s)]\n' "$BATS_TEST_TMPDIR/pwned" >"$WORK/expected-bytes"
    preflight
    fails_with 1 'the size of the last backup is not a whole number'
    : >"$WORK/expected-bytes"
    printf '#!/bin/sh\nprintf "Avail\\n%%s\\n" "a[\\$(touch %s)]"\n' "$BATS_TEST_TMPDIR/pwned" \
        >"$STUB/bin/df"
    chmod +x "$STUB/bin/df"
    preflight
    fails_with 1 "the free space in $BACKUP_STAGING is not a whole number"
    [[ ! -e $BATS_TEST_TMPDIR/pwned ]]
}

# dump_fails LINES CODE: the dump breaks off after LINES lines, and its client ends with CODE.
dump_fails() {
    use_mysql
    printf '%s\n' "$1" >"$STUB/dump-lines"
    on dump "echo 'mariadb-dump: Error 2013: Lost connection to server' >&2; exit $2"
    preflight
    step capture online
    ends_with_status 1
    [[ "$output $(<"$WORK/reason")" == *'Lost connection'* ]] || fail 'the reason is lost'
    nothing_has_a_final_name
}

@test "MySQL: a dump that fails at its start fails the capture" { dump_fails 0 2; }

@test "MySQL: a dump that fails in its middle fails the capture" { dump_fails 10 3; }

@test "MySQL: a dump that fails at its end fails the capture" { dump_fails 1000 2; }

@test "MySQL: a dump that is cut off while its client says success is never published" {
    local lines
    use_mysql
    for lines in 0 10 26; do
        printf '%s\n' "$lines" >"$STUB/dump-lines"
        rm -f "$WORK"/{reason,result}
        preflight
        step capture online
        ends_with_status 0
        step finish
        fails_with 1 'cut off'
        nothing_has_a_final_name
    done
}

@test "MySQL: a dump without the tracker's tables is never published" {
    use_mysql
    sed -i 's/`keys`/`locks`/' "$STUB/dump"
    preflight
    step capture online
    step finish
    fails_with 1 'lacks the tables: keys'
    nothing_has_a_final_name
}

# exclude_statistics: a server of which two dumps are to be taken.
exclude_statistics() {
    use_mysql
    conf BACKUP_SCOPE exclude-statistics
    sed -i '/^INSERT INTO `torrents`/,/);$/d' "$STUB/dump"
    cat >"$STUB/dump-torrents" <<'SQL'
/*M!999999\- enable the sandbox mode */
INSERT INTO `torrents` VALUES
(1,'aa',1),
(3,'cc',7);
-- Dump completed on 2026-01-02  3:04:06
SQL
}

@test "MySQL: without statistics there are two dumps, both published, their rows counted together" {
    exclude_statistics
    back_up
    cmp <(gzip -dc "$DESTINATION/mysql/mysql_$RUN_ID.sql.gz") "$STUB/dump"
    cmp <(gzip -dc "$DESTINATION/mysql/mysql_$RUN_ID.torrents.sql.gz") "$STUB/dump-torrents"
    [[ $(grep -c $'^file\tdatabase\tmysql/' "$WORK/result") == 2 ]] || fail "$(<"$WORK/result")"
    has_result $'table\t2\ttorrents'
    has_result $'table\t2\twhitelist'
    has_result $'table\t0\tkeys'
}

@test "MySQL: without statistics the second dump has rows of torrents only, those completed" {
    local ignored='--ignore-table-data=tor.r`ust -x' taken='^mariadb-dump .*--single-transaction'
    exclude_statistics
    printf '%s\n' "it's & \\x.y" >>"$STUB/tables"
    conf DB_NAME 'tor.r`ust -x'
    back_up
    was_called "$taken .*--routines --skip-triggers --events $ignored.torrents -- tor.r\`ust -x\$"
    was_called "$taken .*--triggers --no-create-info --where=completed > 0 "
    grep -qF -- "$ignored.whitelist $ignored.keys $ignored.it's & \\x.y -- tor" "$CALLS"
    [[ $(grep -c -- --where "$CALLS") == 1 ]]
}

@test "MySQL: a second dump that is cut off is never published, nor the first" {
    exclude_statistics
    sed -i '$d' "$STUB/dump-torrents"
    preflight
    step capture online
    step finish
    fails_with 1 'cut off'
    nothing_has_a_final_name
}

@test "MySQL: a second dump that fails fails the capture" {
    exclude_statistics
    on dump '[[ $* != *--where* ]] \
        || { echo "mariadb-dump: Error 2013: Lost connection to server" >&2; exit 3; }'
    preflight
    step capture online
    fails_with 1 'Lost connection'
    nothing_has_a_final_name
}

@test "MySQL: with zstd, too" {
    use_mysql
    conf BACKUP_COMPRESSION zstd
    back_up
    cmp <(zstd -dcq "$DESTINATION/mysql/mysql_$RUN_ID.sql.zst") "$STUB/dump"
}
