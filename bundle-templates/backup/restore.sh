#!/usr/bin/env bash
# Unpacks, checks and puts back one backup, inside a container of the backup image that
# `tracker-backup` starts.
#
# The steps, by `docker exec`; what was captured is checked with the same functions as before it was
# published:
#   restore.sh measure  WORK FILE...     their sizes unpacked, in WORK/sizes
#   restore.sh unpack   WORK FILE...     from the destination into staging, checked; counts in WORK/result
#   restore.sh prepare  WORK KIND [DB]   KIND: database, config, all: what will be put where, in WORK/new and WORK/targets
#   restore.sh apply    WORK             every target: what is there moves to WORK/old, the new one into its place
#   restore.sh rollback WORK             undoes an apply that ended anywhere
#   restore.sh connect  WORK             how to reach an external MySQL server, into the container's own memory
# No symlink of a service is followed: the deployment is mounted at /data, and a target below a link
# is refused. Exit codes: 0 success, 1 failed, 2 wrong call.
set -Eeuo pipefail
shopt -s inherit_errexit nullglob

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

readonly COPYING=.restore-partial

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
                decompress "$DESTINATION/$file" >"$WORK/database.db" || die 1 "$file cannot be unpacked"
                check_sqlite "$WORK/database.db"
                counts=$(count_sqlite_rows "$WORK/database.db")
                ;;
            mysql/*)
                name=database
                [[ $file != *.torrents.sql.* ]] || name=torrents
                decompress "$DESTINATION/$file" >"$WORK/$name.sql" || die 1 "$file cannot be unpacked"
                check_mysql_dump "$WORK/$name.sql"
                dumps+=("$WORK/$name.sql")
                ;;
            config/*)
                decompress "$DESTINATION/$file" >"$WORK/config.tar" || die 1 "$file cannot be unpacked"
                tar --list --file "$WORK/config.tar" >"$WORK/members" || die 1 "$file is not a readable archive"
                ;;
            *) die 2 "$file is not a backup" ;;
        esac
    done
    ((${#dumps[@]} == 0)) || counts=$(count_mysql_rows "${dumps[@]}")
    [[ -z $counts ]] || while IFS=$'\t' read -r rows table; do result table "$rows" "$table"; done <<<"$counts"
}

# prepare KIND [DATABASE]: the SQLite file goes to DATABASE, below the deploy directory, with the
# owner that it has there.
prepare() {
    local kind=$1 database=${2-} directory owner suffix
    mkdir -p -- "$WORK/new" "$WORK/old"
    if [[ $kind != database ]]; then
        tar --extract --file "$WORK/config.tar" --directory "$WORK/new" --numeric-owner --same-owner --same-permissions
    fi
    if [[ $kind != config && -n $database ]]; then
        directory=${database%/*}
        [[ -d $DATA/$directory || -d $WORK/new/$directory ]] || die 1 "$DATA/$directory is not there: restore the configuration, too"
        for owner in "$DATA/$database" "$DATA/$directory" "$WORK/new/$directory"; do
            [[ ! -e $owner || -L $owner ]] || break
        done
        mkdir -p -- "$WORK/new/$directory"
        mv -T -- "$WORK/database.db" "$WORK/new/$database"
        chown --reference "$owner" -- "$WORK/new/$database"
        chmod 0644 -- "$WORK/new/$database"
    fi
    (cd "$WORK/new" && find . ! -type d -printf '%P\0') >"$WORK/targets"
    # No database beside the journal of another one.
    while IFS= read -r -d '' database; do
        is_sqlite "$WORK/new/$database" || continue
        for suffix in -journal -wal -shm; do
            there "$WORK/new/$database$suffix" || printf '%s\0' "$database$suffix" >>"$WORK/targets"
        done
    done < <(cd "$WORK/new" && find . -type f -printf '%P\0')
}

there() { [[ -e $1 || -L $1 ]]; }

refuse_link_above() {
    local parent=$DATA/$1
    while parent=${parent%/*} && [[ $parent != "$DATA" ]]; do
        [[ ! -L $parent ]] || die 1 "$parent is a symlink; nothing is restored through it: remove it first"
    done
}

# move FROM TO: a link first; where there can be none, as on another file system, a copy, which has
# its name when it is whole and on disk. So one of both is whole at any moment, and a TO that is
# there is; `mv` would copy to the name itself.
move() {
    if ! ln --force --physical --no-target-directory -- "$1" "$2" 2>/dev/null; then
        cp --archive --no-target-directory -- "$1" "$2$COPYING"
        sync --file-system -- "${2%/*}"
        mv -T -- "$2$COPYING" "$2"
        sync --file-system -- "${2%/*}"
    fi
    rm -f -- "$1"
}

# What was there and what was not is on disk before the first move; so a rollback is right after a
# kill at any moment.
apply() {
    local relative
    : >"$WORK/existing" && : >"$WORK/absent" && : >"$WORK/made"
    while IFS= read -r -d '' relative; do
        refuse_link_above "$relative"
        [[ ! -d $DATA/$relative || -L $DATA/$relative ]] || die 1 "$DATA/$relative is a directory; the backup has a file there"
        if there "$DATA/$relative"; then printf '%s\0' "$relative" >>"$WORK/existing"; else printf '%s\0' "$relative" >>"$WORK/absent"; fi
    done <"$WORK/targets"
    : >"$WORK/begun"
    sync --file-system "$WORK"
    make_directories
    while IFS= read -r -d '' relative; do
        mkdir -p -- "$WORK/old/$(dirname -- "$relative")"
        move "$DATA/$relative" "$WORK/old/$relative"
    done <"$WORK/existing"
    while IFS= read -r -d '' relative; do
        if there "$WORK/new/$relative"; then move "$WORK/new/$relative" "$DATA/$relative"; fi
    done <"$WORK/targets"
    sync --file-system "$DATA"
}

# Directories that are missing are made as the backup has them; those that are there stay as they
# are.
make_directories() {
    local relative
    while IFS= read -r -d '' relative; do
        refuse_link_above "$relative/x"
        [[ ! -d $DATA/$relative ]] || continue
        printf '%s\0' "$relative" >>"$WORK/made"
        mkdir -- "$DATA/$relative"
        chown --reference "$WORK/new/$relative" -- "$DATA/$relative"
        chmod --reference "$WORK/new/$relative" -- "$DATA/$relative"
    done < <(cd "$WORK/new" && find . -mindepth 1 -type d -printf '%P\0')
}

# clear_way RELATIVE: what a service has put there since moves aside, a link on the way or a
# directory in the place: nothing is written through it, nor does it keep the rest from being rolled
# back.
clear_way() {
    local parent=$1
    [[ ! -d $DATA/$1 || -L $DATA/$1 ]] || mv -T -- "$DATA/$1" "$(mktemp -d -- "$WORK/aside.XXXX")/directory"
    while [[ $parent == */* ]]; do
        parent=${parent%/*}
        [[ ! -L $DATA/$parent ]] || mv -T -- "$DATA/$parent" "$(mktemp -d -- "$WORK/aside.XXXX")/link"
    done
}

rollback() {
    local relative index made
    [[ -e $WORK/begun ]] || return 0
    while IFS= read -r -d '' relative; do
        clear_way "$relative"
        rm -f -- "$DATA/$relative$COPYING"
    done <"$WORK/targets"
    while IFS= read -r -d '' relative; do rm -f -- "$DATA/$relative"; done <"$WORK/absent"
    while IFS= read -r -d '' relative; do
        there "$WORK/old/$relative" || continue
        mkdir -p -- "$DATA/$(dirname -- "$relative")"
        rm -f -- "$DATA/$relative"          # of both there may be no room
        move "$WORK/old/$relative" "$DATA/$relative"
    done <"$WORK/existing"
    mapfile -d '' -t made <"$WORK/made"
    for ((index = ${#made[@]} - 1; index >= 0; index--)); do
        rmdir -- "$DATA/${made[index]}" || log "$DATA/${made[index]} is not empty and stays"
    done
    sync --file-system "$DATA"
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
    [[ $step =~ ^(measure|unpack|prepare|apply|rollback|connect)$ && ${2-} =~ ^[0-9A-Za-z_.]+$ ]] || die 2 'usage: see the head of restore.sh'
    WORK=$STAGING/$2
    # There it is one mount with the deployment: between two, of one file system, too, there are no
    # links.
    [[ ! -d $DATA/storage/backup-staging/$2 ]] || WORK=$DATA/storage/backup-staging/$2
    [[ -d $WORK ]] || die 2 "$WORK is not there: tracker-backup makes it"
    "$step" "${@:3}"
}

restore_main "$@"
