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
readonly ONLINE_RETRY_SECONDS=${BACKUP_ONLINE_RETRY_SECONDS:-30}
readonly REQUIRED_TABLES=(torrents whitelist keys)

declare -A SETTING=()
WORK=''                           # the run's own directory in staging

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
    require_setting BACKUP_SCOPE full
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
    [[ $(head -c 15 -- "$path") == 'SQLite format 3' ]] || die 1 "the database $path is not an SQLite database"
}

# The live file and its journals, together, while nobody writes: never the .db alone, never opened where it lies.
capture_sqlite_files() {
    local suffix source
    for suffix in '' -journal -wal; do
        source=${SETTING[DB_PATH]}$suffix
        [[ -e $source || -L $source ]] || continue
        [[ -f $source && ! -L $source ]] || die 1 "$source is not a regular file"
        cp --reflink=auto -- "$source" "$WORK/database.db$suffix" || die 1 "copying $source failed"
    done
    [[ -s $WORK/database.db ]] || die 1 "the copy of ${SETTING[DB_PATH]} is empty"
}

# online_copy FROM TO: one read transaction held for the whole copy, so that a writer cannot make it start over.
online_copy() {
    local from=$1 to=$2 deadline=$((SECONDS + ONLINE_RETRY_SECONDS)) message
    while true; do
        rm -f -- "$to" "$to-journal"
        if message=$(printf '%s\n' 'BEGIN;' 'SELECT count(*) FROM sqlite_master;' ".backup '$to'" 'COMMIT;' \
            | sqlite3 -batch -bail -readonly -cmd '.timeout 5000' "$from" 2>&1 >/dev/null); then
            return 0
        fi
        ((SECONDS < deadline)) || die 1 "cannot read $from while it is in use: ${message//$'\n'/ }"
        sleep 1
    done
}

# Lets SQLite recover the copied set, checks it, and leaves one file. The page cache makes the check 20 times as fast.
check_sqlite() {
    local database=$1 answer
    answer=$(sqlite3 -batch -bail "$database" 'PRAGMA cache_size=-262144; PRAGMA integrity_check;' 2>&1) \
        || die 1 "integrity_check failed: ${answer//$'\n'/ }"
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

query_mysql() { said mariadb --defaults-file="$CLIENT_CONFIG" --batch --skip-column-names --execute "$1" -- "${SETTING[DB_NAME]}"; }

capture_mysql() {
    said mariadb-dump --defaults-file="$CLIENT_CONFIG" --single-transaction --quick --no-tablespaces \
        --routines --triggers --events --hex-blob -- "${SETTING[DB_NAME]}" >"$WORK/database.sql"
}

check_mysql_dump() {
    local last
    last=$(tail -n 1 -- "$1")
    [[ $last == '-- Dump completed'* ]] || die 1 "the dump is cut off: it does not end with '-- Dump completed'"
}

# One line a table: rows, tab, name. mariadb-dump writes one row a line and no raw line end inside a value.
count_mysql_rows() {
    mawk '
        /^CREATE TABLE `/ { name = $0; sub(/^CREATE TABLE `/, "", name); sub(/` \($/, "", name); rows[name] += 0; next }
        /^INSERT INTO `/  { name = $0; sub(/^INSERT INTO `/, "", name); sub(/` VALUES$/, "", name); inside = 1; next }
        inside && /^\(/   { rows[name]++; if (/;$/) inside = 0 }
        END { for (name in rows) { shown = name; gsub(/\t/, " ", shown); gsub(/``/, "`", shown); printf "%d\t%s\n", rows[name], shown } }
    ' "$1"
}
