#!/usr/bin/env bats
# restic.sh as a process; restic is a stub that says what the real one was heard to say
# (tests/e2e/test_remote.py has the real one).

# Every test is a subshell of its own; bats and helpers.bash give it its variables.
# shellcheck disable=SC2030,SC2031,SC2154
bats_require_minimum_version 1.5.0

setup() {
    load helpers
    export STUB=$BATS_TEST_TMPDIR/stub
    export BACKUP_CONFIG=$BATS_TEST_TMPDIR/backup.conf BACKUP_DESTINATION=$BATS_TEST_TMPDIR/backups
    export BACKUP_SCRATCH=$BATS_TEST_TMPDIR BACKUP_ANSWER_SECONDS=5
    export PATH=$STUB/bin:$PATH
    CALLS=$STUB/calls SECRETS=$BATS_TEST_TMPDIR
    mkdir -p "$STUB/bin" "$BACKUP_DESTINATION"
    printf 'rest:http://user:hidden-word@backup.example.org/x/' >"$SECRETS/restic_repository"
    printf 'the password' >"$SECRETS/restic_password"
    printf '%s\n' "BACKUP_MODE='single'" "BACKUP_PATHS_FILE='/x'" "BACKUP_COMPRESSION='gzip'" \
        "BACKUP_SCOPE='full'" "BACKUP_ALLOW_WRITER_STALL='false'" "DB_TYPE='sqlite'" \
        "DB_PATH='/x'" \
        "RESTIC_REPOSITORY_FILE='$SECRETS/restic_repository'" \
        "RESTIC_PASSWORD_FILE='$SECRETS/restic_password'" \
        "RESTIC_KEEP_DAILY='7'" "RESTIC_KEEP_WEEKLY='0'" "RESTIC_KEEP_MONTHLY='12'" \
        >"$BACKUP_CONFIG"
    answers 0 ''
}

# answers STATUS STDERR [STDOUT]: what restic does at every call; its arguments and environment are
# written down.
answers() {
    {
        printf '#!/usr/bin/env bash\nprintf "%%s\\n" "restic $*" >>%q\nenv >%q\n' \
            "$CALLS" "$STUB/environment"
        printf 'printf "%%s" %q\nprintf "%%s\\n" %q >&2\nexit %d\n' "${3-}" "$2" "$1"
    } >"$STUB/bin/restic"
    chmod +x "$STUB/bin/restic"
}

step() { run "$TIMEOUT" 30 bash "$TEMPLATES/backup/restic.sh" "$@"; }

@test "each reason has an exit code of its own and a message that names what to correct" {
    local expected said message
    while IFS='|' read -r status_of_restic expected said message; do
        answers "$status_of_restic" "$said"
        step identify
        ends_with_status "$expected"
        output_has "$message"
    done <<'REASONS'
10|10|Fatal: repository does not exist: unable to open config file|there is no restic repository
11|11|unable to create lock: locked by PID 20 on nas|by another restic: locked by PID 20
12|12|Fatal: wrong password or no key found|the repository's password is wrong
1|13|Stat(<config/>) failed: unexpected HTTP response (401): 401 Unauthorized|turns the keys
124|13|returned error, retrying: Stat: The Access Key Id you provided does not exist.|turns the keys
124|13|returned error: Stat: The request signature we calculated does not match|turns the keys
1|13|subprocess ssh: copies@nas: Permission denied (publickey,password).|turns the SSH key
1|13|subprocess ssh: Host key verification failed.|the server's key is not in the file
124|14|returned error: dial tcp 127.0.0.1:8001: connect: connection refused|cannot be reached
124|14|returned error: dial tcp: lookup no.such.host on 10.0.0.1:53: no such host|cannot be reached
1|14|subprocess ssh: ssh: connect to host nas port 22: Connection refused|cannot be reached
124|15|nothing that we know|was not over after 5 s
124|16|returned error, retrying: Stat: The specified bucket does not exist|the bucket does not exist
1|1|Fatal: write /scratch/pack: no space left on device|there is no space left, in the
1|1||restic cat failed, exit code 1: it printed nothing
1|1|Fatal: something else|restic cat failed, exit code 1: Fatal: something else
REASONS
}

@test "a restic that hangs is ended" {
    printf '#!/bin/sh\nexec sleep 60\n' >"$STUB/bin/restic"
    BACKUP_ANSWER_SECONDS=1 step identify
    ends_with_status 15
    output_has 'was not over after 1 s: it printed nothing'
}

@test "neither the password of the address nor a key shows in what restic said" {
    printf 'AWS_SECRET_ACCESS_KEY=quite secret key\n' >"$SECRETS/restic_environment"
    printf '%s\n' "RESTIC_ENVIRONMENT_FILE='$SECRETS/restic_environment'" >>"$BACKUP_CONFIG"
    answers 1 'Fatal: hidden-word and quite secret key'
    step check
    ends_with_status 1
    output_lacks hidden-word
    output_lacks 'quite secret'
    output_has 'Fatal: *** and ***'
    grep -qx 'AWS_SECRET_ACCESS_KEY=quite secret key' "$STUB/environment"
    run ! grep -q 'secret key\|hidden-word\|the password' "$CALLS"
}

@test "a variable that is none of a server's is refused" {
    printf 'LD_PRELOAD=/x\n' >"$SECRETS/restic_environment"
    printf '%s\n' "RESTIC_ENVIRONMENT_FILE='$SECRETS/restic_environment'" >>"$BACKUP_CONFIG"
    step identify
    ends_with_status 2
    [[ ! -e $CALLS ]]
}

@test "forget is limited to the host and the tag, and keeps what is more than 0" {
    step forget 'my, host' 'environment=my%2C host'
    ends_with_status 0
    was_called "forget --quiet --prune --retry-lock=30s --host=my, host \
--tag=environment=my%2C host --group-by=host --keep-daily=7 --keep-monthly=12$"
}

@test "a policy that keeps nothing removes nothing" {
    sed -i "s/^\(RESTIC_KEEP_.*\)=.*/\1='0'/" "$BACKUP_CONFIG"
    step forget host tag
    ends_with_status 2
    [[ ! -e $CALLS ]]
}

@test "without locks nothing is unlocked; of foreign ones only the stale; all, when all are ours" {
    step unlock
    ends_with_status 0
    never_called ' unlock'
    answers 0 '' '{"hostname": "somebody-else"}'
    step unlock
    was_called ' unlock$'
    never_called 'remove-all'
    answers 0 '' "{\"hostname\": \"$HOSTNAME\"}"
    step unlock
    was_called 'unlock --remove-all'
}

@test "the SSH key is used from a copy that only its user may read" {
    printf 'a key without a final newline' >"$SECRETS/restic_ssh_key"
    printf 'nas ssh-ed25519 AAAA\n' >"$SECRETS/restic_known_hosts"
    printf '%s\n' "RESTIC_SSH_KEY_FILE='$SECRETS/restic_ssh_key'" \
        "RESTIC_KNOWN_HOSTS_FILE='$SECRETS/restic_known_hosts'" >>"$BACKUP_CONFIG"
    step check
    ends_with_status 0
    [[ $(stat -c %a "$BATS_TEST_TMPDIR/ssh_key") == 600 ]]
    was_called "StrictHostKeyChecking=yes -o UserKnownHostsFile=$SECRETS/restic_known_hosts"
}

@test "restic has its temporary files where TMPDIR says, and the SSH key is not among them" {
    mkdir "$BATS_TEST_TMPDIR/disk"
    TMPDIR=$BATS_TEST_TMPDIR/disk step check
    ends_with_status 0
    grep -qx "TMPDIR=$BATS_TEST_TMPDIR/disk" "$STUB/environment"
    [[ -z $(ls -A "$BATS_TEST_TMPDIR/disk") ]]
}
