#!/usr/bin/env bash
# Captures, checks and publishes one backup, inside the backup container.
#
# maintenance-backup.sh calls it by `docker exec`, one step at a time. Only `capture` is inside the
# window.
#   backup.sh idle                    the container's own process: wait for the steps, at most a day
#   backup.sh preflight RUN METHOD [room]
#                                     find everything that is wrong before the tracker is touched;
#                                     with `room`, make room for the copy
#   backup.sh capture   RUN METHOD    METHOD: copy (the tracker is stopped or paused) or online
#   backup.sh finish    RUN           check, count, archive, compress, publish; the results are in
#                                     the run's staging
# In a sidecar, a run is inside the container. It calls the steps, and there is no window:
#   backup.sh sidecar                 the container's own process: cron, by BACKUP_SCHEDULE in the
#                                     time zone TZ
#   backup.sh now [--dry-run]         a run now
# Exit codes: 0 success, 1 the backup failed, 2 configuration error.
set -Eeuo pipefail
shopt -s inherit_errexit nullglob
umask 077
export LC_ALL=C

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

readonly IDLE_SECONDS=86400
readonly STALL_LIMIT_SECONDS=5
readonly SIDECAR_BACKUP=${BACKUP_PROGRAM:-/usr/local/lib/tracker-backup/__main__.py}
readonly CRON_FILE=${BACKUP_CRON_FILE:-/etc/cron.d/tracker-backup}
readonly ZONES=/usr/share/zoneinfo

# ---------------------------------------------------------------- paths

# read_paths COMMAND: fills PATHS, DIRECTORIES and DATABASES (below $DATA, without it) from the path
# list. COMMAND reports each optional path that is missing.
read_paths() {
    local line path kind optional file=${SETTING[BACKUP_PATHS_FILE]}
    PATHS=() DIRECTORIES=() DATABASES=()
    [[ -r $file ]] || die 2 "cannot read $file; install the bundle again"
    while IFS= read -r line || [[ -n $line ]]; do
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        optional=no kind=path path=$line
        if [[ $path == '?'* ]]; then optional=yes path=${path#'?'}; fi
        case $path in
            sqlite:*) kind=sqlite path=${path#sqlite:} ;;
            dir:*) kind=dir path=${path#dir:} ;;
            *) ;;
        esac
        [[ $path == "$DATA"/* && $path/ != */../* ]] || die 2 "$file: $path is not below $DATA"
        if [[ ! -e $path && ! -L $path ]]; then
            [[ $optional == yes ]] || die 1 "$path is in $file and does not exist"
            "$@" "optional path missing: $path"
            continue
        fi
        refuse_symlink "$path"
        [[ -r $path ]] || die 1 "$path is in $file and cannot be read"
        case $kind in
            sqlite) DATABASES+=("${path#"$DATA"/}") ;;
            dir) DIRECTORIES+=("${path#"$DATA"/}") ;;
            *) PATHS+=("${path#"$DATA"/}") ;;
        esac
    done <"$file"
    ((${#PATHS[@]} > 0)) || die 2 "$file names no path"
}

# ---------------------------------------------------------------- preflight

# check_space DATABASE COPIES: DATABASE is in bytes. The run writes COPIES times the database and
# the archive into staging, and both into the destination, compressed. Before the first run nobody
# knows how well they compress, so their full size is needed.
check_space() {
    local database=$1 copies=$2 config available needed once expected
    config=$(cd "$DATA" \
        && du --bytes --summarize --total -- "${PATHS[@]}" "${DATABASES[@]}" | tail -n 1 | cut -f 1)
    require_number 'the size of the database' "$database"
    require_number 'the size of the configuration' "$config"
    once=$((database + config + 16777216)) needed=$((database * copies + config + 16777216))
    log "database $((database / 1048576)) MiB, configuration $((config / 1048576)) MiB"
    for directory in "$STAGING" "$DESTINATION"; do
        available=$(df --block-size=1 --output=avail -- "$directory" | tail -n 1 | tr -d ' ')
        require_number "the free space in $directory" "$available"
        if [[ $directory == "$DESTINATION" && -s $WORK/expected-bytes ]]; then
            expected=$(<"$WORK/expected-bytes")
            require_number 'the size of the last backup' "$expected"
            needed=$((expected * 3 / 2 + 16777216))
        elif [[ $directory == "$DESTINATION" ]] && same_device "$STAGING" "$DESTINATION"; then
            needed=$((needed + once))
        elif [[ $directory == "$DESTINATION" ]]; then
            needed=$once
        fi
        ((available > needed)) \
            || die 1 "not enough space in $directory: $needed bytes needed, $available available"
    done
}

same_device() { [[ $(stat -c %d -- "$1") == "$(stat -c %d -- "$2")" ]]; }

probe_write() {
    local probe=$1/.probe-$RUN
    { printf 'probe\n' >"$probe" && sync -- "$probe" && rm -f -- "$probe"; } \
        || die 1 "cannot write to $1 as the container's user"
}

# A writer in rollback-journal mode waits for the whole online copy. SQLite's drivers commonly give
# up after 5 s.
refuse_writer_stall() {
    local bytes=$1 started elapsed sample=67108864 samples estimate
    ! is_wal "${SETTING[DB_PATH]}" || return 0
    ((bytes > sample)) || return 0
    started=${EPOCHREALTIME/[.,]/}
    head -c "$sample" -- "${SETTING[DB_PATH]}" >"$WORK/sample"
    elapsed=$((${EPOCHREALTIME/[.,]/} - started + 1))
    rm -f -- "$WORK/sample"
    samples=$((bytes / sample)) estimate=$((samples * elapsed / 1000000))
    log "an online copy would make the tracker's writes wait for about $estimate s"
    if ((estimate > STALL_LIMIT_SECONDS)) \
        && [[ ${SETTING[BACKUP_ALLOW_WRITER_STALL]} == false ]]; then
        die 1 "the tracker's writes would wait for about $estimate s" \
            "(limit $STALL_LIMIT_SECONDS s): choose strategy 'maintenance-window'" \
            "with quiesce 'pause' or 'stop', or set backup.allow_writer_stall"
    fi
}

preflight() {
    local method=$1 room=${2-} bytes copies=1 tables
    load_config
    read_paths :
    if [[ ${SETTING[DB_TYPE]} == sqlite ]]; then
        require_sqlite_file "${SETTING[DB_PATH]}"
        bytes=$(du --bytes --total -- "${SETTING[DB_PATH]}"{,-journal,-wal} 2>/dev/null \
            | tail -n 1 | cut -f 1) || true
        require_number 'the size of the database' "$bytes"
        [[ $method != online ]] || refuse_writer_stall "$bytes"
    else
        write_client_config
        tables=$(query_mysql 'SHOW TABLES')
        # The warnings of the run come from `finish`, so that the run manifest has each only once.
        compare_tables log_warning "$tables" "database ${SETTING[DB_NAME]}, as user" \
            "${SETTING[DB_USER]} sees it,"
        warn_of_unseen 'triggers (privilege TRIGGER)' "'TRIGGER'" "'TRIGGER'"
        warn_of_unseen "other users' routines (privilege SHOW_ROUTINE)" \
            "'SELECT', 'SHOW_ROUTINE', 'EXECUTE', 'CREATE ROUTINE', 'ALTER ROUTINE'" \
            "'EXECUTE', 'CREATE ROUTINE', 'ALTER ROUTINE'"
        bytes=$(query_mysql 'SELECT coalesce(sum(data_length + index_length), 0)
            FROM information_schema.tables WHERE table_schema = database()')
        require_number 'the size of the database' "$bytes"
    fi
    for directory in sqlite mysql config runs; do mkdir -p -- "$DESTINATION/$directory"; done
    probe_write "$STAGING"
    probe_write "$DESTINATION"
    # The whole copy and the excerpt that is made from it exist at the same time.
    [[ ${SETTING[DB_TYPE]}-$method-${SETTING[BACKUP_SCOPE]} != sqlite-copy-exclude-statistics ]] \
        || copies=2
    check_space "$bytes" "$copies"
    [[ ${SETTING[DB_TYPE]}-$room != sqlite-room ]] || make_room "$bytes"
}

# ---------------------------------------------------------------- capture

capture() {
    local method=$1
    load_config
    fault_point capturing-the-database
    case ${SETTING[DB_TYPE]}-$method-${SETTING[BACKUP_SCOPE]} in
        sqlite-copy-full) capture_sqlite_files "$WORK/database.db" ;;
        sqlite-copy-*) capture_sqlite_files "$WORK/whole.db" ;;
        sqlite-online-full) online_copy "${SETTING[DB_PATH]}" "$WORK/database.db" ;;
        sqlite-online-*) online_excerpt "${SETTING[DB_PATH]}" "$WORK/database.db" ;;
        mysql-*) capture_mysql ;;
        *) die 2 "no such capture: ${SETTING[DB_TYPE]}, $method" ;;
    esac
}

# ---------------------------------------------------------------- finish

# check_database CHECK COUNT FILE...
check_database() {
    local file counts names table rows
    fault_point checking-the-database
    for file in "${@:3}"; do "$1" "$file"; done
    counts=$("$2" "${@:3}")
    names=$(cut -f 2 <<<"$counts")
    compare_tables warn "$names" 'the captured database'
    while IFS=$'\t' read -r rows table; do result table "$rows" "$table"; done <<<"$counts"
}

log_warning() { log "WARNING: $*"; }

# table_names: the names on standard input, one a line, as run manifests have them; see answers.py.
table_names() {
    python3 -I -S -c 'import sys
for line in sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n").split("\n"):
    name = "".join(one if one.isprintable() else " " for one in line[:256])
    sys.stdout.buffer.write(name.encode() + b"\n")'
}

# compare_tables REPORT NAMES WHERE...: NAMES are the tables that are there now, one a line. REPORT
# is called for each table of the last good run that is missing. Such a table may have been dropped
# on purpose, so it never stops a backup. The host then removes no older backup until somebody has
# looked. If none of these tables is left, that is no backup. On a first run there is nothing to
# compare with, so the tracker's own tables must be there.
compare_tables() {
    local report=$1 names where=${*:3} table expected missing=()
    names=$(table_names <<<"$2")
    mapfile -t expected <"$WORK/expected-tables"
    if ((${#expected[@]} == 0)); then
        for table in "${REQUIRED_TABLES[@]}"; do
            grep -qxF -- "$table" <<<"$names" || missing+=("$table")
        done
        ((${#missing[@]} == 0)) || die 1 "$where lacks the tables: ${missing[*]}"
        return 0
    fi
    for table in "${expected[@]}"; do
        grep -qxF -- "$table" <<<"$names" || missing+=("$table")
    done
    ((${#missing[@]} < ${#expected[@]})) \
        || die 1 "$where has none of the tables of the last good run: ${missing[*]:0:10}"
    for table in "${missing[@]}"; do
        "$report" "$where lacks the table $table, which the last good run has." \
            "It was dropped, or the user may not see it any more." \
            "If that is right, run 'tracker-backup acknowledge'."
    done
}

# Members are relative to the deploy directory, numeric owners, symlinks as such.
archive_config() {
    local archive=$WORK/config.tar relative member status=0
    read_paths warn
    for relative in "${DIRECTORIES[@]}" "${PATHS[@]}" "${DATABASES[@]}"; do
        result path "$relative"
    done
    ancestors "${DIRECTORIES[@]}" "${PATHS[@]}" "${DATABASES[@]}" >"$WORK/directories"
    printf '%s\0' "${DIRECTORIES[@]}" >>"$WORK/directories"
    printf '%s\0' "${PATHS[@]}" >"$WORK/paths"
    fault_point archiving-the-configuration
    tar --create --file "$archive" --numeric-owner --directory "$DATA" \
        --null --verbatim-files-from --no-recursion --files-from "$WORK/directories" \
        --recursion --files-from "$WORK/paths" || status=$?
    ((status < 2)) || die 1 "tar failed with exit code $status; its message is in the log"
    ((status == 0)) || warn "a configuration file changed while it was read (tar exit code 1)"
    for relative in "${DATABASES[@]}"; do
        require_sqlite_file "$DATA/$relative"
        member=$WORK/members/$relative
        online_copy "$DATA/$relative" "$WORK/member.db"
        check_sqlite "$WORK/member.db"
        mkdir -p -- "${member%/*}"
        mv -T -- "$WORK/member.db" "$member"
        # shellcheck disable=SC2046 # three words: uid, gid, mode
        append_member "$archive" "$relative" $(stat -c '%u %g %a' -- "$DATA/$relative")
    done
}

# The directories above the given paths, outermost first, so that an empty machine gets them with
# their owners.
ancestors() {
    local path
    for path in "$@"; do
        while [[ $path == */* ]]; do path=${path%/*} && printf '%s\n' "$path"; done
    done | sort --unique | { printf '.\0' && tr '\n' '\0'; }
}

append_member() {
    tar --append --file "$1" --numeric-owner --owner ":$3" --group ":$4" --mode "$5" \
        --directory "$WORK/members" -- "$2"
}

# compress FROM KIND NAME: into the destination under a partial name, synced, and read back whole.
compress() {
    local from=$1 partial=$DESTINATION/$2/$3.partial
    if [[ ${SETTING[BACKUP_COMPRESSION]} == gzip ]]; then
        nice pigz --stdout <"$from" >"$partial" && sync_compressed "$2" "$partial" \
            && pigz --test <"$partial"
    else
        nice zstd -T0 -q --stdout <"$from" >"$partial" && sync_compressed "$2" "$partial" \
            && zstd -q --test <"$partial"
    fi || die 1 "compressing into $2/$3 failed; the message is in the log"
}

sync_compressed() {
    [[ $1 == config ]] || fault_point syncing-the-compressed-database
    sync -- "$2"
}

# An incomplete file never has its final name. Each rename is durable before the next step relies on
# it.
publish() {
    local kind=$1 subdirectory=$2 name=$3 bytes sha256
    local final=$DESTINATION/$subdirectory/$name
    bytes=$(stat -c %s -- "$final.partial")
    sha256=$(sha256sum <"$final.partial")
    fault_point "publishing-the-${kind/%config/configuration}"
    mv -T -- "$final.partial" "$final"
    sync -- "$DESTINATION/$subdirectory"
    result file "$kind" "$subdirectory/$name" "$bytes" "${sha256%% *}"
}

timed() {
    local started=${EPOCHREALTIME/[.,]/} name=$1 elapsed
    shift
    "$@"
    elapsed=$(((${EPOCHREALTIME/[.,]/} - started) / 1000))
    result duration "$name" "$((elapsed / 1000)).$(printf '%03d' $((elapsed % 1000)))"
}

# The window is for copying alone. So the whole copy is checked here, and then becomes the excerpt.
take_excerpt() {
    check_sqlite "$WORK/whole.db"
    excerpt_sqlite "$WORK/whole.db" "$WORK/database.db"
    rm -f -- "$WORK/whole.db"*
}

finish() {
    local suffix=gz type published names=() files=()
    load_config
    type=${SETTING[DB_TYPE]}
    [[ ${SETTING[BACKUP_COMPRESSION]} == gzip ]] || suffix=zst
    if [[ $type == sqlite ]]; then
        make_own "$WORK"/{database,whole}.db{,-journal,-wal}
        files=("$WORK/database.db") names=("sqlite_$RUN.db.$suffix")
        [[ ! -e $WORK/whole.db ]] || timed excerpt take_excerpt
        timed check check_database check_sqlite count_sqlite_rows "${files[@]}"
        result tool sqlite3 "$(sqlite_database version)"
    else
        files=("$WORK/database.sql") names=("mysql_$RUN.sql.$suffix")
        if [[ ${SETTING[BACKUP_SCOPE]} != full ]]; then
            files+=("$WORK/torrents.sql") names+=("mysql_$RUN.torrents.sql.$suffix")
        fi
        timed check check_database check_mysql_dump count_mysql_rows "${files[@]}"
        result tool mariadb-dump "$(mariadb-dump --version)"
    fi
    timed archive archive_config
    timed compress compress_database
    timed compress_config compress "$WORK/config.tar" config "config_$RUN.tar.$suffix"
    for published in "${names[@]/#/$type/}" "config/config_$RUN.tar.$suffix"; do
        [[ ! -e $DESTINATION/$published ]] \
            || die 1 "$DESTINATION/$published is there already; nothing was published"
    done
    for published in "${names[@]}"; do publish database "$type" "$published"; done
    publish config config "config_$RUN.tar.$suffix"
}

# Of finish: its files and names.
compress_database() {
    local index
    fault_point compressing-the-database
    for index in "${!files[@]}"; do compress "${files[index]}" "$type" "${names[index]}"; done
}

# ---------------------------------------------------------------- main

idle() {
    trap 'exit 0' TERM INT
    sleep "$IDLE_SECONDS" &
    wait
}

# Cron's jobs have another standard output than the container, which is where `docker logs` reads.
write_cron_file() {
    [[ -n ${BACKUP_SCHEDULE-} && $BACKUP_SCHEDULE != *$'\n'* ]] \
        || die 2 'BACKUP_SCHEDULE is not in the environment; install the bundle again'
    printf '%s\n' 'SHELL=/bin/sh' \
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'MAILTO=""' \
        "$BACKUP_SCHEDULE root /usr/local/bin/backup.sh now >>/proc/1/fd/1 2>&1" >"$CRON_FILE"
    chmod 0644 -- "$CRON_FILE"
}

sidecar() {
    write_cron_file
    # A name, or the rule itself as POSIX writes it, which ends in a number.
    [[ -z ${TZ-} || -e $ZONES/$TZ || $TZ == *[0-9] ]] \
        || log "WARNING: the image does not know the time zone $TZ; the schedule is in UTC"
    log "the schedule is $BACKUP_SCHEDULE, time zone ${TZ:-UTC}"
    exec cron -f
}

# Cron does not pass the container's environment to its jobs.
now() {
    export TRACKER_BACKUP_DEPLOY_DIR=${TRACKER_BACKUP_DEPLOY_DIR:-$DATA} \
        TRACKER_BACKUP_DESTINATION=${TRACKER_BACKUP_DESTINATION:-$DESTINATION}
    exec python3 "$SIDECAR_BACKUP" in-sidecar "$@"
}

main() {
    local step=${1-}
    [[ ! $step =~ ^(courier|unpacker|client|examiner|reader)$ ]] \
        || exec python3 -I -B "${PACKAGE%/*}/backup.py" "$step"
    [[ $step != idle ]] || { idle; exit; }
    [[ $step != sidecar ]] || sidecar
    [[ $step != now ]] || now "${@:2}"
    [[ $step =~ ^(preflight|capture|finish)$ && ${2-} =~ ^[0-9]{8}_[0-9]{6}$ ]] \
        || die 2 'usage: backup.sh idle | sidecar | now | preflight RUN METHOD [room]' \
            '| capture RUN METHOD | finish RUN'
    readonly RUN=$2
    WORK=$STAGING/$RUN
    [[ -d $WORK ]] || die 2 "$WORK is not there: maintenance-backup.sh makes it"
    trap 'printf "%s" "$?" >"$WORK/ended"' EXIT
    "$step" "${@:3}"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
