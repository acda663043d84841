#!/usr/bin/env bash
# Unpacks, checks and puts back one backup, inside a container of the backup image that
# `tracker-backup` starts.
#
# The steps, by `docker exec`; what was captured is checked with the same functions as before it was
# published:
#   restore.sh measure  WORK FILE...     their sizes unpacked, in WORK/sizes
#   restore.sh unpack   WORK FILE...     from the destination into staging, checked
#   restore.sh prepare  WORK KIND [DB]   KIND: database, config, all: fills WORK/new and targets
#   restore.sh apply    WORK             moves what is there to WORK/old, and the new in its place
#   restore.sh rollback WORK             undoes an apply that ended anywhere
#   restore.sh connect  WORK             makes the client configuration for an external server
# No symlink of a service is followed: the deployment is mounted at /data, and a target below a link
# is refused. Exit codes: 0 success, 1 failed, 2 wrong call.
set -Eeuo pipefail
shopt -s inherit_errexit nullglob

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

decompress() {
    case $1 in
        *.gz) pigz --decompress --stdout <"$1" ;;
        *.zst) zstd -q --decompress --stdout <"$1" ;;
        *) die 2 "$1 is not a backup" ;;
    esac
}

# What cannot be unpacked is found by unpacking it.
measure() {
    local file bytes
    : >"$WORK/sizes"
    for file in "$@"; do
        bytes=$(decompress "$DESTINATION/$file" 2>/dev/null | wc -c) || true
        printf '%s\t%s\n' "$bytes" "$file" >>"$WORK/sizes"
    done
}

unpack() {
    local file name counts='' dumps=() rows table
    for file in "$@"; do
        case $file in
            sqlite/*)
                decompress "$DESTINATION/$file" >"$WORK/database.db" \
                    || die 1 "$file cannot be unpacked"
                check_sqlite "$WORK/database.db"
                counts=$(count_sqlite_rows "$WORK/database.db")
                ;;
            mysql/*)
                name=database
                [[ $file != *.torrents.sql.* ]] || name=torrents
                decompress "$DESTINATION/$file" >"$WORK/$name.sql" \
                    || die 1 "$file cannot be unpacked"
                check_mysql_dump "$WORK/$name.sql"
                dumps+=("$WORK/$name.sql")
                ;;
            config/*)
                decompress "$DESTINATION/$file" >"$WORK/config.tar" \
                    || die 1 "$file cannot be unpacked"
                tar --list --file "$WORK/config.tar" >"$WORK/members" \
                    || die 1 "$file is not a readable archive"
                ;;
            *) die 2 "$file is not a backup" ;;
        esac
    done
    ((${#dumps[@]} == 0)) || counts=$(count_mysql_rows "${dumps[@]}")
    [[ -n $counts ]] || return 0
    while IFS=$'\t' read -r rows table; do result table "$rows" "$table"; done <<<"$counts"
}

prepare() { restore_files prepare "$@"; }

apply() { restore_files apply; }

rollback() { restore_files rollback; }

# Python moves the files, on directory descriptors, so that no name of a service is too long.
restore_files() {
    exec python3 -I -B -- "$PACKAGE/worker/restore_files.py" "$1" "$DATA" "$WORK" "${@:2}"
}

# As root when there is a secret for it: triggers need it.
connect() {
    load_config
    if [[ -n ${SETTING[DB_ROOT_PASSWORD_FILE]-} ]]; then
        SETTING[DB_USER]=root SETTING[DB_PASSWORD_FILE]=${SETTING[DB_ROOT_PASSWORD_FILE]}
    fi
    write_client_config
}

restore_main() {
    local step=${1-}
    [[ $step =~ ^(measure|unpack|prepare|apply|rollback|connect)$ && ${2-} =~ ^[0-9A-Za-z_.]+$ ]] \
        || die 2 'usage: see the head of restore.sh'
    WORK=$STAGING/$2
    # There it is one mount with the deployment: between two, of one file system, too, there are no
    # links.
    [[ ! -d $DATA/storage/backup-staging/$2 ]] || WORK=$DATA/storage/backup-staging/$2
    [[ -d $WORK ]] || die 2 "$WORK is not there: tracker-backup makes it"
    rm -f -- "$WORK/reason"
    "$step" "${@:3}"
}

restore_main "$@"
