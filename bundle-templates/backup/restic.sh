#!/usr/bin/env bash
# Calls restic, inside a container that `tracker-backup` starts and that sees the destination and
# the repository alone.
#
# The steps; HOST and TAG are this environment's own, and nothing of others is touched:
#   restic.sh identify                         the repository's id
#   restic.sh init                             makes it
#   restic.sh snapshots HOST TAG               as JSON
#   restic.sh unlock                           takes away the locks that dead processes left
#   restic.sh backup HOST TAG,... TIME FILE... files of the destination, as one snapshot
#   restic.sh forget HOST TAG                  what backup.conf does not keep, then prunes
#   restic.sh check                            the repository itself
#   restic.sh show SNAPSHOT FILE               on standard output
#   restic.sh fetch SNAPSHOT FILE...           into /target
# Exit codes: 0 success; 1 failed; 2 configuration error; 10 no repository; 11 locked; 12 wrong
# password; 13 turned away by the server; 14 server not reached; 15 not over in time; 16 no bucket.
# The last line on standard error says why.
set -Eeuo pipefail
shopt -s inherit_errexit
umask 077
export LC_ALL=C TZ=UTC0
# restic sends one to the process that a lock names, in this container or another.
trap '' HUP

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "${BASH_SOURCE[0]%/*}/lib.sh"

readonly TARGET=${BACKUP_TARGET:-/target}
# In memory, for secrets. restic writes its packs to TMPDIR, which is on disk.
readonly SCRATCH=${BACKUP_SCRATCH:-/tmp}
readonly ANSWER_SECONDS=${BACKUP_ANSWER_SECONDS:-60}    # restic by itself tries for 15 minutes
readonly TRANSFER_SECONDS=21600
readonly LOCK_WAIT=30s
readonly SAID=$SCRATCH/restic.said

OPTIONS=(--no-cache)
SECRETS=()                              # what must not show in what restic says

# ---------------------------------------------------------------- how to reach it

# restic reads the address and the password from files; what the server asks for, it takes from its
# environment alone.
prepare() {
    local key address
    load_config
    for key in RESTIC_REPOSITORY_FILE RESTIC_PASSWORD_FILE; do
        require_setting "$key"
        [[ -r ${SETTING[$key]} ]] || die 2 "the secret ${SETTING[$key]} is missing"
        export "$key=${SETTING[$key]}"
    done
    address=$(<"${SETTING[RESTIC_REPOSITORY_FILE]}")
    [[ ! $address =~ //[^/@]*:([^/@]+)@ ]] || SECRETS+=("${BASH_REMATCH[1]}")
    [[ -z ${SETTING[RESTIC_ENVIRONMENT_FILE]-} ]] \
        || read_environment "${SETTING[RESTIC_ENVIRONMENT_FILE]}"
    [[ -z ${SETTING[RESTIC_SSH_KEY_FILE]-} ]] \
        || use_ssh_key "${SETTING[RESTIC_SSH_KEY_FILE]}" "${SETTING[RESTIC_KNOWN_HOSTS_FILE]-}"
}

read_environment() {
    local line
    [[ -r $1 ]] || die 2 "the secret $1 is missing"
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^(AWS_|B2_|RESTIC_REST_)[A-Z0-9_]*= ]] \
            || die 2 "$1: expected NAME=value, with a NAME that begins AWS_, B2_ or RESTIC_REST_"
        export "${line?}"
        line=${line#*=}
        ((${#line} < 8)) || SECRETS+=("$line")
    done <"$1"
}

# A copy, since ssh wants the key to be its user's alone, and to end with a newline.
use_ssh_key() {
    local file
    for file in "$@"; do [[ -r $file ]] || die 2 "the secret $file is missing"; done
    printf '%s\n' "$(<"$1")" >"$SCRATCH/ssh_key"
    OPTIONS+=(-o "sftp.args=-F none -i $SCRATCH/ssh_key -o IdentitiesOnly=yes -o BatchMode=yes \
-o StrictHostKeyChecking=yes -o UserKnownHostsFile=$2 -o GlobalKnownHostsFile=none \
-o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=4")
}

# ---------------------------------------------------------------- calling it

# call SECONDS ARGUMENT...: restic, with a time limit; a failure ends the step with its reason.
call() {
    local limit=$1 status=0
    shift
    timeout --kill-after=10 "$limit" restic "${OPTIONS[@]}" "$@" 2>"$SAID" || status=$?
    redact <"$SAID" >&2
    ((status == 0)) || explain "$status" "$limit" "$1"
}

redact() {
    local text secret
    text=$(cat)
    for secret in "${SECRETS[@]}"; do text=${text//"$secret"/'***'}; done
    [[ -z $text ]] || printf '%s\n' "$text"
}

# What a server's refusal looks like is known from its words alone: restic tries again for as long
# as it may.
explain() {
    local status=$1 limit=$2 step=$3 said last
    said=$(<"$SAID")
    last=$(grep 'returned error' "$SAID" | tail -n 1) \
        || last=$(grep '^Fatal: ' "$SAID" | tail -n 1) \
        || last=$(grep -v '^[[:space:]]*$' "$SAID" | tail -n 1) || true
    last=$(redact <<<"$last")
    last=${last:-it printed nothing}
    case $status-$said in
        10-*) die 10 "there is no restic repository at the address of backup.restic.repository" ;;
        11-*)
            last=$(grep -o -m 1 'locked.*' "$SAID" || true)
            die 11 "the repository is locked by another restic: $last"
            ;;
        12-*) die 12 "the repository's password is wrong: backup.restic.password" ;;
        *'Host key verification failed'*)
            die 13 "the server's key is not in the file of backup.restic.ssh_known_hosts_path"
            ;;
        *'Permission denied ('*)
            die 13 "the server turns the SSH key or the user away: \
backup.restic.ssh_private_key_path, repository"
            ;;
        *'bucket does not exist'* | *NoSuchBucket*)
            die 16 "the bucket does not exist: make it, or correct backup.restic.repository"
            ;;
        *'401 Unauthorized'* | *'403 Forbidden'* | *'Access Key Id you provided'* \
            | *'signature we calculated'* | *'Access Denied'* \
            | *AccessDenied* | *InvalidAccessKeyId* | *SignatureDoesNotMatch* \
            | *'(401'* | *'(403'* | *bad_auth_token*)
            die 13 "the server turns the keys or the password for it away \
(backup.restic.environment, repository): $last"
            ;;
        *[Cc]'onnection refused'* | *'no such host'* | *'Could not resolve'* \
            | *'server misbehaving'* | *[Nn]'o route to host'* \
            | *[Nn]'etwork is unreachable'* | *'i/o timeout'* | *'timed out'* \
            | *[Cc]'onnection reset'* | *[Cc]'onnection closed'*)
            die 14 "the server cannot be reached: $last"
            ;;
        *[Nn]'o space left on device'* | *'disk quota exceeded'*)
            die 1 "there is no space left, in the repository or for restic's temporary files in \
staging: $last"
            ;;
        124-* | 137-*) die 15 "restic $step was not over after $limit s: $last" ;;
        *) die 1 "restic $step failed, exit code $status: $last" ;;
    esac
}

# ---------------------------------------------------------------- steps

identify() {
    local text
    text=$(call "$ANSWER_SECONDS" cat config --no-lock)
    [[ $text =~ \"id\":\ *\"([0-9a-f]+)\" ]] || die 1 "the repository's configuration names no id"
    printf '%s\n' "${BASH_REMATCH[1]}"
}

init() { call "$ANSWER_SECONDS" init >&2; }

snapshots() { call "$ANSWER_SECONDS" snapshots --no-lock --json --host="$1" --tag="$2"; }

# The host's lock is held meanwhile: what carries this container's host name was left by a dead run.
# Which locks of other hosts are stale, restic knows.
unlock() {
    local ids id text options=(--remove-all)
    ids=$(call "$ANSWER_SECONDS" list locks --no-lock)
    [[ -n $ids ]] || return 0
    for id in $ids; do
        text=$(call "$ANSWER_SECONDS" cat lock "$id" --no-lock) || text=''
        [[ $text =~ \"hostname\":\ *\"$HOSTNAME\" ]] || options=()
    done
    call "$ANSWER_SECONDS" unlock "${options[@]}" >&2
}

backup() {
    cd -- "$DESTINATION"
    call "$TRANSFER_SECONDS" backup --quiet --retry-lock="$LOCK_WAIT" --host="$1" --tag="$2" \
        --time="$3" -- "${@:4}" >&2
}

forget() {
    local period keep=()
    for period in DAILY WEEKLY MONTHLY; do
        require_setting "RESTIC_KEEP_$period"
        [[ ${SETTING[RESTIC_KEEP_$period]} == 0 ]] \
            || keep+=("--keep-${period,,}=${SETTING[RESTIC_KEEP_$period]}")
    done
    ((${#keep[@]} > 0)) \
        || die 2 "$CONFIG: of RESTIC_KEEP_DAILY, _WEEKLY and _MONTHLY one must be more than 0; \
nothing is removed"
    call "$TRANSFER_SECONDS" forget --quiet --prune --retry-lock="$LOCK_WAIT" --host="$1" \
        --tag="$2" --group-by=host "${keep[@]}" >&2
}

check() { call "$TRANSFER_SECONDS" check --retry-lock="$LOCK_WAIT" >&2; }

show() { call "$ANSWER_SECONDS" dump --no-lock "$1" "$2"; }

fetch() {
    local file includes=()
    for file in "${@:2}"; do includes+=(--include="/$file"); done
    call "$TRANSFER_SECONDS" restore --no-lock "$1" --target="$TARGET" "${includes[@]}" >&2
}

restic_main() {
    local step=${1-}
    [[ $step =~ ^(identify|init|snapshots|unlock|backup|forget|check|show|fetch)$ ]] \
        || die 2 'usage: see the head of restic.sh'
    prepare
    "$step" "${@:2}"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then restic_main "$@"; fi
