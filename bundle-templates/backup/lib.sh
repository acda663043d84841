# backup.sh and restore.sh share this: the settings, how a step ends, and the work on databases,
# SQLite or MySQL.
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
PACKAGE=${BASH_SOURCE[0]%/*}/tracker_backup
[[ -d $PACKAGE ]] || PACKAGE=/usr/local/lib/tracker-backup/tracker_backup
readonly PACKAGE SQLITE_PROGRAM=$PACKAGE/worker/sqlite.py
readonly ROOM_SECONDS=60
readonly ONLINE_RETRY_SECONDS=${BACKUP_ONLINE_RETRY_SECONDS:-30}
readonly REQUIRED_TABLES=(torrents whitelist keys)

declare -A SETTING=()
WORK=''                           # the run's own directory in staging

# fault_point NAME: a place at which the test suite can stop a run; see fault_points.py.
fault_point() { [[ ${TRACKER_BACKUP_STOP_AT-} != "$1" ]] || stand_still "$STAGING/.fault-points"; }

stand_still() {
    local end=$((SECONDS + 60))
    if [[ -d $1 ]] && mkdir -- "$1/reached" 2>/dev/null; then
        while [[ -e $1/hold ]] && ((SECONDS < end)); do sleep 0.02; done
    fi
}

log() { printf '%s backup: %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }

# The host reads the reason from the run's staging. It logs it once and writes it into the run
# manifest.
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

# require_number WHAT VALUE: call it for each value from a program, a file or a server before (( ))
# sees the value. Bash runs commands in the subscripts of an arithmetic expression.
require_number() {
    local shown=${2//[^[:print:]]/ }
    [[ $2 =~ ^(0|[1-9][0-9]{0,17})$ ]] || die 1 "$1 is not a whole number: '${shown:0:60}'"
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
        [[ ${value//"'\''"/} != *\'* ]] \
            || die 2 "$CONFIG, line $number: a quote inside a value is written '\\''"
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
            for key in DB_HOST DB_PORT DB_USER DB_NAME DB_PASSWORD_FILE; do
                require_setting "$key"
            done
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

# A service can write symlinks into its own directories. A path that we read must not lead
# elsewhere.
refuse_symlink() {
    local real
    real=$(realpath -e -- "$1") || die 1 "$1 cannot be read"
    [[ $real == "$(realpath -m -s -- "$1")" ]] \
        || die 1 "$1 leads through a symlink to $real; refused"
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

is_wal() { [[ $(od -An -j 18 -N 1 -t u1 -- "$1") =~ ^\ *2$ ]]; }

# capture_sqlite_files TO: copies the live file together with its journals while nobody writes.
# SQLite never opens the live file.
capture_sqlite_files() {
    local to=$1 suffix source
    for suffix in '' -journal -wal; do
        source=${SETTING[DB_PATH]}$suffix
        [[ -e $source || -L $source ]] || continue
        [[ -f $source && ! -L $source ]] || die 1 "$source is not a regular file"
        refuse_symlink "$source"
        copy_or_share "$source" "$to$suffix" || die 1 "copying $source failed"
        [[ -f $to$suffix && ! -L $to$suffix ]] || die 1 "$source is not a regular file"
    done
    [[ -s $to ]] || die 1 "the copy of ${SETTING[DB_PATH]} is empty"
}

copy_or_share() {
    if cp --reflink=always --no-dereference -- "$1" "$2" 2>/dev/null; then
        : >"$WORK/shared"
    elif ! fill_room "$1" "$2"; then
        rm -f -- "$WORK/room"
        cp --reflink=never --no-dereference -- "$1" "$2"
    fi
}

# make_room BYTES: makes a first copy of the database before the window. BYTES is the size of the
# database and its journals. This copy is torn. Its only use is that the copy in the window
# overwrites it, so that memory and blocks are there already. Otherwise the kernel, or the host of a
# virtual machine, often has to free memory first, which can take several times as long as copying.
# No first copy is made if blocks can be shared, if memory does not hold both files, or if the disk
# is slow. It is synced piece by piece, because a single sync cannot be interrupted, and the
# tracker's commits would wait behind it.
make_room() {
    local room=$WORK/room kibibytes
    kibibytes=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' -- "$MEMORY") || return 0
    [[ $kibibytes =~ ^[1-9][0-9]{0,17}$ ]] || return 0
    ((kibibytes / 2 > $1 / 1024)) || return 0
    if cp --reflink=always --no-dereference -- "${SETTING[DB_PATH]}" "$room" 2>/dev/null \
        || ! timeout "$ROOM_SECONDS" \
            dd if="${SETTING[DB_PATH]}" of="$room" bs=16M iflag=nofollow oflag=dsync \
            status=none 2>/dev/null; then
        rm -f -- "$room"
    fi
}

# fill_room FROM TO: the copy has its name only when it is whole.
fill_room() {
    [[ -f $WORK/room && ! -L $WORK/room ]] \
        && dd if="$1" of="$WORK/room" bs=1M iflag=nofollow conv=notrunc status=none \
        && truncate --reference="$1" -- "$WORK/room" && mv -T -- "$WORK/room" "$2"
}

# make_own FILE...: ends the sharing of blocks between these copies and the live files. While blocks
# are shared, each write of the tracker goes to a new place, so the live file gets more pieces every
# minute, and the next reflink takes longer. The data is written directly, because otherwise the
# tracker's commits would wait behind a full page cache.
make_own() {
    local file
    for file in "$@"; do
        [[ -e $WORK/shared && -e $file ]] || continue
        dd if="$file" of="$WORK/own" bs=1M oflag=direct status=none 2>/dev/null \
            || cp --reflink=never --no-dereference -- "$file" "$WORK/own" \
            || die 1 "copying $file failed"
        mv -T -- "$WORK/own" "$file"
    done
}

# sqlite_database COMMAND FILE...: all work on SQLite databases. SQLite's temporary files can be
# large, so they are in the run's staging.
sqlite_database() { SQLITE_TMPDIR=$WORK python3 -I -B "$SQLITE_PROGRAM" "$@"; }

# said_by_sqlite: what sqlite_database wrote into $WORK/stderr, on one line.
said_by_sqlite() {
    local said
    said=$(tr -s '\n ' ' ' <"$WORK/stderr")
    printf '%s' "${said% }"
}

# while_in_use COMMAND FROM TO: tries sqlite_database again and again while a writer is in the way.
while_in_use() {
    local from=$2 deadline=$((SECONDS + ONLINE_RETRY_SECONDS)) status
    until sqlite_database "$@" >/dev/null 2>"$WORK/stderr"; do
        status=$?
        ((status != 3)) || die 1 "$(said_by_sqlite)"
        ((SECONDS < deadline)) || die 1 "cannot read $from while it is in use: $(said_by_sqlite)"
        sleep 1
    done
}

# online_copy FROM TO, online_excerpt FROM TO: of a live database.
online_copy() { while_in_use copy "$1" "$2"; }

online_excerpt() { while_in_use excerpt "$1" "$2"; }

# excerpt_sqlite FROM TO: without the torrents that nobody completed; nobody writes to FROM.
excerpt_sqlite() {
    local status=0
    sqlite_database excerpt "$1" "$2" >/dev/null 2>"$WORK/stderr" || status=$?
    ((status != 3)) || die 1 "$(said_by_sqlite)"
    ((status == 0)) || die 1 "the statistics could not be left out: $(said_by_sqlite)"
}

# check_sqlite DATABASE: lets SQLite recover the copied set, checks it, and leaves one file.
check_sqlite() {
    local warnings warning
    warnings=$(sqlite_database check "$1" 2>"$WORK/stderr") || die 1 "$(said_by_sqlite)"
    [[ -z $warnings ]] || while IFS= read -r warning; do warn "$warning"; done <<<"$warnings"
}

# count_sqlite_rows DATABASE: prints one line a table: rows, tab, name.
count_sqlite_rows() {
    sqlite_database count "$1" 2>"$WORK/stderr" \
        || die 1 "the rows of the captured database cannot be counted: $(said_by_sqlite)"
}

# ---------------------------------------------------------------- MySQL

# The password goes from its secret into a 0600 file of the container's own memory, never into an
# argument.
write_client_config() {
    local password
    [[ -r ${SETTING[DB_PASSWORD_FILE]} ]] \
        || die 2 "the secret ${SETTING[DB_PASSWORD_FILE]} is missing"
    password=$(<"${SETTING[DB_PASSWORD_FILE]}")
    {
        printf '[client]\n'
        printf '%s="%s"\n' host "$(option_value "${SETTING[DB_HOST]}")" \
            user "$(option_value "${SETTING[DB_USER]}")" password "$(option_value "$password")"
        printf 'port=%s\nprotocol=tcp\ndefault-character-set=utf8mb4\nmax-allowed-packet=1G\n' \
            "${SETTING[DB_PORT]}"
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

# said COMMAND...: its standard error goes to the log. If it fails, the last line is the reason.
said() {
    local status=0
    "$@" 2>"$WORK/stderr" || status=$?
    cat -- "$WORK/stderr" >&2
    ((status == 0)) || die 1 "$(tail -n 1 -- "$WORK/stderr") ($1, exit code $status)"
}

query_mysql() {
    said mariadb --defaults-file="$CLIENT_CONFIG" --batch --raw --skip-column-names \
        --execute "$1" -- "${SETTING[DB_NAME]}"
}

# warn_of_unseen WHAT GLOBAL SCHEMA: the server hides objects that the user may not see, and a dump
# then lacks them without a message. GLOBAL and SCHEMA are privileges. One of them is enough.
warn_of_unseen() {
    local found
    found=$(query_mysql "SELECT count(*) FROM (
        SELECT 1 FROM information_schema.user_privileges WHERE privilege_type IN ($2)
        UNION ALL SELECT 1 FROM information_schema.schema_privileges
        WHERE database() LIKE table_schema AND privilege_type IN ($3)) AS granted")
    require_number "the server's number of privileges" "$found"
    ((found > 0)) \
        || warn "user ${SETTING[DB_USER]} may not see $1 in database ${SETTING[DB_NAME]}:" \
            "if there are any, the backup lacks them"
}

# dump_mysql FILE OPTION...
dump_mysql() {
    said mariadb-dump --defaults-file="$CLIENT_CONFIG" --single-transaction --quick \
        --no-tablespaces --hex-blob "${@:2}" -- "${SETTING[DB_NAME]}" >"$1"
}

# Two dumps are needed to leave out rows, because --where applies to every table. Each is consistent
# in itself. The second one has the rows of torrents and all triggers: a trigger must not exist
# before the rows are there.
capture_mysql() {
    local name=${SETTING[DB_NAME]} tables table others=()
    if [[ ${SETTING[BACKUP_SCOPE]} == full ]]; then
        dump_mysql "$WORK/database.sql" --routines --triggers --events
        return
    fi
    dump_mysql "$WORK/database.sql" --routines --skip-triggers --events \
        --ignore-table-data="$name.torrents"
    tables=$(query_mysql "SELECT table_name FROM information_schema.tables
        WHERE table_schema = database() AND table_type = 'BASE TABLE' AND table_name <> 'torrents'")
    while IFS= read -r table; do others+=(--ignore-table-data="$name.$table"); done <<<"$tables"
    dump_mysql "$WORK/torrents.sql" --triggers --no-create-info --where='completed > 0' \
        "${others[@]}"
}

check_mysql_dump() {
    local last
    last=$(tail -n 1 -- "$1")
    [[ $last == '-- Dump completed'* ]] \
        || die 1 "the dump is cut off: it does not end with '-- Dump completed'"
}

# count_mysql_rows FILE...: prints one line a table: rows, tab, name. mariadb-dump writes each row
# on its own line and no raw line end inside a value.
count_mysql_rows() {
    mawk '
        /^CREATE TABLE `/ {
            name = $0; sub(/^CREATE TABLE `/, "", name); sub(/` \($/, "", name)
            rows[name] += 0
            next
        }
        /^INSERT INTO `/ {
            name = $0; sub(/^INSERT INTO `/, "", name); sub(/` VALUES$/, "", name)
            inside = 1
            next
        }
        inside && /^\(/   { rows[name]++; if (/;$/) inside = 0 }
        END {
            for (name in rows) {
                shown = name; gsub(/\t/, " ", shown); gsub(/``/, "`", shown)
                printf "%d\t%s\n", rows[name], shown
            }
        }
    ' "$@"
}
