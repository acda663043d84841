# What backup.sh and restore.sh share: the settings, how a step ends, and what is done to a database, SQLite or MySQL.
#
# The paths are those of the container; each can be overridden for tests.
# shellcheck shell=bash
# shellcheck disable=SC2034 # DATA, STAGING and DESTINATION are the scripts'

readonly CONFIG=${BACKUP_CONFIG:-/etc/backup/backup.conf}
readonly DATA=${BACKUP_DATA:-/data}
readonly STAGING=${BACKUP_STAGING:-/staging}
readonly DESTINATION=${BACKUP_DESTINATION:-/backups}
readonly CLIENT_CONFIG=${BACKUP_CLIENT_CONFIG:-/tmp/client.cnf}
readonly MEMORY=${BACKUP_MEMORY:-/proc/meminfo}
readonly ROOM_SECONDS=60
readonly ONLINE_RETRY_SECONDS=${BACKUP_ONLINE_RETRY_SECONDS:-30}
readonly REQUIRED_TABLES=(torrents whitelist keys)

declare -A SETTING=()
WORK=''                           # the run's own directory in staging

# fault_point NAME: a place at which the test suite can stop a run; see run.sh on the host.
fault_point() { [[ ${TRACKER_BACKUP_STOP_AT-} != "$1" ]] || stand_still "$STAGING/.fault-points"; }

stand_still() {
    local end=$((SECONDS + 60))
    if [[ -d $1 ]] && mkdir -- "$1/reached" 2>/dev/null; then
        while [[ -e $1/hold ]] && ((SECONDS < end)); do sleep 0.02; done
    fi
}

log() { printf '%s backup: %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }

# The reason goes to the host through the run's staging: it logs it once, and writes it into the run manifest.
die() {
    local code=$1
    shift
    if [[ -d $WORK ]]; then printf '%s\n' "$*" >"$WORK/reason"; else log "ERROR: $*"; fi
    exit "$code"
}

# result KIND FIELD...: one line, tab-separated, for the run manifest.
result() {
    local IFS=$'\t'
    printf '%s\n' "$*" >>"$WORK/result"
}

warn() {
    log "WARNING: $*"
    result warning "$*"
}

# ---------------------------------------------------------------- configuration

# KEY='value' lines, '\'' for a quote inside; read, never executed.
load_config() {
    local line key value number=0
    [[ -f $CONFIG && -r $CONFIG ]] || die 2 "cannot read $CONFIG; install the bundle again"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^([A-Z_]+)=\'(.*)\'$ ]] || die 2 "$CONFIG, line $number: expected KEY='value'"
        key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        [[ ${value//"'\''"/} != *\'* ]] || die 2 "$CONFIG, line $number: a quote inside a value is written '\\''"
        SETTING[$key]=${value//"'\''"/\'}
    done <"$CONFIG"

    require_setting BACKUP_MODE single
    require_setting BACKUP_COMPRESSION gzip zstd
    require_setting BACKUP_SCOPE full exclude-statistics
    require_setting BACKUP_ALLOW_WRITER_STALL true false
    require_setting BACKUP_PATHS_FILE
    require_setting DB_TYPE sqlite mysql
    case ${SETTING[DB_TYPE]} in
        sqlite) require_setting DB_PATH ;;
        mysql)
            for key in DB_HOST DB_PORT DB_USER DB_NAME DB_PASSWORD_FILE; do require_setting "$key"; done
            require_setting DB_TLS unverified verified
            ;;
        *) die 2 "$CONFIG: no such DB_TYPE" ;;
    esac
}

# require_setting KEY [ALLOWED...]: present, not empty, and one of the allowed values.
require_setting() {
    local key=$1 value=${SETTING[$1]-} allowed
    shift
    [[ -n $value ]] || die 2 "$CONFIG: $key is missing or empty"
    (($# == 0)) && return
    for allowed in "$@"; do [[ $value != "$allowed" ]] || return 0; done
    die 2 "$CONFIG: $key='$value'; allowed: $*"
}

# A service can write symlinks into its own directories: what we read by name must not lead elsewhere.
refuse_symlink() {
    local real
    real=$(realpath -e -- "$1") || die 1 "$1 cannot be read"
    [[ $real == "$(realpath -m -s -- "$1")" ]] || die 1 "$1 leads through a symlink to $real; refused"
}

# ---------------------------------------------------------------- SQLite

require_sqlite_file() {
    local path=$1
    [[ -e $path ]] || die 1 "the database $path does not exist"
    refuse_symlink "$path"
    [[ -f $path && -r $path ]] || die 1 "the database $path is not a readable file"
    [[ -s $path ]] || die 1 "the database $path is empty (0 bytes)"
    is_sqlite "$path" || die 1 "the database $path is not an SQLite database"
}

# is_sqlite FILE, is_wal DATABASE: what its header says; nothing is opened.
is_sqlite() { [[ $(head -c 15 -- "$1" | tr -d '\0') == 'SQLite format 3' ]]; }

is_wal() { [[ $(od -An -j 18 -N 1 -t u1 -- "$1") -eq 2 ]]; }

# capture_sqlite_files TO: the live file and its journals, together, while nobody writes: never the .db alone, never opened
# where it lies.
capture_sqlite_files() {
    local to=$1 suffix source
    for suffix in '' -journal -wal; do
        source=${SETTING[DB_PATH]}$suffix
        [[ -e $source || -L $source ]] || continue
        [[ -f $source && ! -L $source ]] || die 1 "$source is not a regular file"
        copy_or_share "$source" "$to$suffix" || die 1 "copying $source failed"
    done
    [[ -s $to ]] || die 1 "the copy of ${SETTING[DB_PATH]} is empty"
}

copy_or_share() {
    if cp --reflink=always -- "$1" "$2" 2>/dev/null; then
        : >"$WORK/shared"
    elif ! fill_room "$1" "$2"; then
        rm -f -- "$WORK/room"
        cp --reflink=never -- "$1" "$2"
    fi
}

# make_room BYTES: before the window a first copy of the database, which with its journals has so many. It is torn and of no other use: the one
# in the window is written over it, and so has its memory and its blocks already. What is free often has to be freed first, by the kernel or by the host of a virtual machine, which can
# take several times as long as copying. Not where blocks can be shared, nor where memory does not hold both files, nor on a slow disk: then the
# copy is made without. Synced piece by piece, for a single sync cannot be given up, and the tracker's commits would wait behind it.
make_room() {
    local room=$WORK/room kibibytes
    kibibytes=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' -- "$MEMORY") || return 0
    ((${kibibytes:-0} / 2 > $1 / 1024)) || return 0
    if cp --reflink=always -- "${SETTING[DB_PATH]}" "$room" 2>/dev/null \
        || ! timeout "$ROOM_SECONDS" dd if="${SETTING[DB_PATH]}" of="$room" bs=16M oflag=dsync status=none 2>/dev/null; then
        rm -f -- "$room"
    fi
}

# fill_room FROM TO: the copy has its name only when it is whole.
fill_room() {
    [[ -e $WORK/room ]] && dd if="$1" of="$WORK/room" bs=1M conv=notrunc status=none && truncate --reference="$1" -- "$WORK/room" \
        && mv -T -- "$WORK/room" "$2"
}

# make_own FILE...: copies that share their blocks with the live files do so no longer. What the tracker writes meanwhile goes to a place
# of its own and stays there: with every minute of sharing the live file is in more pieces, and the next reflink takes longer.
# Written directly, for the tracker's commits would wait behind a page cache full of it.
make_own() {
    local file
    for file in "$@"; do
        [[ -e $WORK/shared && -e $file ]] || continue
        dd if="$file" of="$WORK/own" bs=1M oflag=direct status=none 2>/dev/null \
            || cp --reflink=never -- "$file" "$WORK/own" || die 1 "copying $file failed"
        mv -T -- "$WORK/own" "$file"
    done
}

# while_in_use FROM COMMAND...: again and again while a writer is in the way.
while_in_use() {
    local from=$1 deadline=$((SECONDS + ONLINE_RETRY_SECONDS))
    shift
    until "$@" >/dev/null 2>"$WORK/stderr"; do
        ((SECONDS < deadline)) || die 1 "cannot read $from while it is in use: $(tr '\n' ' ' <"$WORK/stderr")"
        sleep 1
    done
}

online_copy() { while_in_use "$1" copy_sqlite "$1" "$2"; }

online_excerpt() { while_in_use "$1" excerpt_sqlite "$1" "$2"; }

# copy_sqlite FROM TO: one read transaction held for the whole copy, so that a writer cannot make it start over.
copy_sqlite() {
    local from=$1 to=$2
    rm -f -- "$to" "$to-journal"
    printf '%s\n' 'BEGIN;' 'SELECT count(*) FROM sqlite_master;' ".backup '$to'" 'COMMIT;' \
        | sqlite3 -batch -bail -readonly -cmd '.timeout 5000' "$from"
}

# excerpt_sqlite FROM TO: a new database with the same schema and settings and every row but those of torrents that were never
# completed, in one read transaction. SQLite itself writes the statements, so that it quotes the names; they are executed with
# -safe, since the text of a hostile schema may hold more than its one statement.
excerpt_sqlite() {
    local from=$1 to=$2 uri virtual settings statements version answer
    local reading=(sqlite3 -batch -bail -readonly -cmd '.timeout 5000' "$from") writing
    rm -f -- "$to" "$to"-{journal,wal}
    virtual=$("${reading[@]}" "SELECT group_concat(name, ', ') FROM sqlite_master WHERE type = 'table' AND rootpage = 0") || return
    [[ -z $virtual ]] || die 1 "$from has virtual tables ($virtual), of which no excerpt can be made: set backup.database_scope to full"
    version=$("${reading[@]}" 'PRAGMA schema_version') \
        && settings=$("${reading[@]}" "$SQLITE_SETTINGS") \
        && statements=$("${reading[@]}" "$SQLITE_EXCERPT") || return
    uri=${from//%/%25} uri=${uri//\?/%3f} uri=${uri//\#/%23} uri=${uri//\'/%27}
    writing=(sqlite3 -batch -bail -cmd '.timeout 5000' -cmd "$settings" -cmd "ATTACH 'file:$uri?mode=ro' AS live" -safe "$to")
    answer=$(printf '%s\n' 'BEGIN;' 'PRAGMA live.schema_version;' "$statements" | SQLITE_TMPDIR=$WORK "${writing[@]}") || return
    [[ ${answer%%$'\n'*} == "$version" ]] || { echo 'the schema was changed meanwhile' >&2; return 1; }
    ! is_wal "$from" || sqlite3 -batch -bail "$to" 'PRAGMA journal_mode=WAL' >/dev/null
}

# What a database has beside its schema; page size, encoding and auto_vacuum before anything is written.
readonly SQLITE_SETTINGS="
    SELECT 'PRAGMA cache_size=-262144; PRAGMA synchronous=OFF; PRAGMA page_size=' || page_size || '; PRAGMA encoding=' || quote(encoding) ||
        '; PRAGMA auto_vacuum=' || auto_vacuum || '; PRAGMA user_version=' || user_version || '; PRAGMA application_id=' || application_id
    FROM pragma_page_size, pragma_encoding, pragma_auto_vacuum, pragma_user_version, pragma_application_id"

# Tables, rows, autoincrement state, then what would only be in the way before: indexes, views, triggers. The text of a schema
# may end in a comment.
readonly SQLITE_EXCERPT="
    SELECT 'CREATE TABLE main.a (a INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE main.a;'
    FROM sqlite_master WHERE name = 'sqlite_sequence';
    CREATE TEMP VIEW tables AS SELECT rowid, name, '\"' || replace(name, '\"', '\"\"') || '\"' AS quoted, sql FROM main.sqlite_master
        WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid;
    SELECT sql || iif(instr(sql, '--'), char(10), '') || ';' FROM tables;
    SELECT 'INSERT INTO main.' || quoted || ' (' || columns || ') SELECT ' || columns || ' FROM live.' || quoted ||
        iif(name = 'torrents', ' WHERE completed > 0;', ';')
    FROM (SELECT *, (SELECT group_concat('\"' || replace(name, '\"', '\"\"') || '\"')
            FROM pragma_table_xinfo(tables.name, 'main') WHERE hidden = 0) AS columns FROM tables);
    SELECT 'DELETE FROM main.sqlite_sequence; INSERT INTO main.sqlite_sequence SELECT * FROM live.sqlite_sequence;'
    FROM sqlite_master WHERE name = 'sqlite_sequence';
    SELECT sql || iif(instr(sql, '--'), char(10), '') || ';' FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL
    ORDER BY type = 'trigger', rowid;
    SELECT 'COMMIT;';
    SELECT 'ANALYZE main;' FROM sqlite_master WHERE name = 'sqlite_stat1'"

# Lets SQLite recover the copied set, checks it, and leaves one file. Mapping the file makes the check two to three times as
# fast; of what lies beyond the 2 GB that can be mapped, the page cache does.
check_sqlite() {
    local database=$1 answer
    answer=$(sqlite3 -batch -bail -cmd '.output /dev/null' -cmd 'PRAGMA cache_size=-262144; PRAGMA mmap_size=2147418112;' -cmd '.output stdout' \
        "$database" 'PRAGMA integrity_check;' 2>&1) || die 1 "integrity_check failed: ${answer//$'\n'/ }"
    [[ $answer == ok ]] || die 1 "integrity_check found: ${answer:0:400}"
    sqlite3 -batch -bail "$database" 'PRAGMA wal_checkpoint(TRUNCATE);' >/dev/null
    # A journal that is left is not hot: some writers keep the file, with its head wiped.
    [[ ! -s $database-wal && $(head -c 8 -- "$database-journal" 2>/dev/null | od -An -t x1) != ' d9 d5 05 f9 20 a1 63 d7' ]] \
        || die 1 "the captured database still has a journal after recovery"
    rm -f -- "$database-journal" "$database-wal" "$database-shm"
}

# One line a table: rows, tab, name. The first query writes the second ones, so that SQLite itself quotes the names.
count_sqlite_rows() {
    sqlite3 -batch -bail "$1" "
        SELECT 'SELECT count(*) || char(9) || ' || quote(replace(replace(name, char(9), ' '), char(10), ' ')) ||
            ' FROM \"' || replace(name, '\"', '\"\"') || '\";'
        FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'" \
        | sqlite3 -batch -bail -safe "$1" || die 1 "the rows of the captured database cannot be counted; the message is in the log"
}

# ---------------------------------------------------------------- MySQL

# The password goes from its secret into a 0600 file of the container's own memory, never into an argument.
write_client_config() {
    local password
    [[ -r ${SETTING[DB_PASSWORD_FILE]} ]] || die 2 "the secret ${SETTING[DB_PASSWORD_FILE]} is missing"
    password=$(<"${SETTING[DB_PASSWORD_FILE]}")
    {
        printf '[client]\n'
        printf '%s="%s"\n' host "$(option_value "${SETTING[DB_HOST]}")" user "$(option_value "${SETTING[DB_USER]}")" \
            password "$(option_value "$password")"
        printf 'port=%s\nprotocol=tcp\ndefault-character-set=utf8mb4\nmax-allowed-packet=1G\n' "${SETTING[DB_PORT]}"
        if [[ ${SETTING[DB_TLS]} == verified ]]; then
            printf 'ssl\nssl-verify-server-cert\nssl-ca="%s"\n' \
                "$(option_value "${SETTING[DB_TLS_CA_FILE]:-/etc/ssl/certs/ca-certificates.crt}")"
        else
            printf 'ssl\nskip-ssl-verify-server-cert\n'
        fi
        printf '[mariadb-client]\nconnect-timeout=10\n'
    } >"$CLIENT_CONFIG"
}

# As MySQL's option files quote: backslash and double quote.
option_value() {
    local value=${1//\\/\\\\}
    printf '%s' "${value//\"/\\\"}"
}

# said COMMAND...: what it said on standard error goes to the log and, its last line, into the reason for a failure.
said() {
    local status=0
    "$@" 2>"$WORK/stderr" || status=$?
    cat -- "$WORK/stderr" >&2
    ((status == 0)) || die 1 "$(tail -n 1 -- "$WORK/stderr") ($1, exit code $status)"
}

query_mysql() { said mariadb --defaults-file="$CLIENT_CONFIG" --batch --raw --skip-column-names --execute "$1" -- "${SETTING[DB_NAME]}"; }

# warn_of_unseen WHAT GLOBAL SCHEMA: what a user has no right to see the server does not tell of, and a dump lacks it without a word.
# GLOBAL and SCHEMA are the privileges of which one is enough.
warn_of_unseen() {
    local found
    found=$(query_mysql "SELECT count(*) FROM (
        SELECT 1 FROM information_schema.user_privileges WHERE privilege_type IN ($2)
        UNION ALL SELECT 1 FROM information_schema.schema_privileges WHERE database() LIKE table_schema AND privilege_type IN ($3)) AS granted")
    ((found > 0)) || warn "user ${SETTING[DB_USER]} may not see $1 in database ${SETTING[DB_NAME]}: if there are any, the backup lacks them"
}

# dump_mysql FILE OPTION...
dump_mysql() {
    said mariadb-dump --defaults-file="$CLIENT_CONFIG" --single-transaction --quick --no-tablespaces --hex-blob "${@:2}" \
        -- "${SETTING[DB_NAME]}" >"$1"
}

# Leaving out rows takes two dumps, each consistent in itself: --where would be of every table. Triggers come with the second,
# since those of torrents must not be there before its rows; of other tables it has nothing else.
capture_mysql() {
    local name=${SETTING[DB_NAME]} tables table others=()
    if [[ ${SETTING[BACKUP_SCOPE]} == full ]]; then
        dump_mysql "$WORK/database.sql" --routines --triggers --events
        return
    fi
    dump_mysql "$WORK/database.sql" --routines --skip-triggers --events --ignore-table-data="$name.torrents"
    tables=$(query_mysql "SELECT table_name FROM information_schema.tables
        WHERE table_schema = database() AND table_type = 'BASE TABLE' AND table_name <> 'torrents'")
    while IFS= read -r table; do others+=(--ignore-table-data="$name.$table"); done <<<"$tables"
    dump_mysql "$WORK/torrents.sql" --triggers --no-create-info --where='completed > 0' "${others[@]}"
}

check_mysql_dump() {
    local last
    last=$(tail -n 1 -- "$1")
    [[ $last == '-- Dump completed'* ]] || die 1 "the dump is cut off: it does not end with '-- Dump completed'"
}

# count_mysql_rows FILE...: one line a table: rows, tab, name. mariadb-dump writes one row a line and no raw line end inside a value.
count_mysql_rows() {
    mawk '
        /^CREATE TABLE `/ { name = $0; sub(/^CREATE TABLE `/, "", name); sub(/` \($/, "", name); rows[name] += 0; next }
        /^INSERT INTO `/  { name = $0; sub(/^INSERT INTO `/, "", name); sub(/` VALUES$/, "", name); inside = 1; next }
        inside && /^\(/   { rows[name]++; if (/;$/) inside = 0 }
        END { for (name in rows) { shown = name; gsub(/\t/, " ", shown); gsub(/``/, "`", shown); printf "%d\t%s\n", rows[name], shown } }
    ' "$@"
}
