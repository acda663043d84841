#!/usr/bin/env bash
# Backs up this host's Torrust Tracker in a short maintenance window. Cron runs it. Run it by hand
# to get a backup now.
#
#   maintenance-backup.sh [--dry-run] [--force] [--recover] [--help]
#     --dry-run   check everything, say what would be done, touch nothing
#     --force     back up although the tracker is not running (it is not started afterwards)
#     --recover   bring back the tracker of a run that died or hangs; if there is none, do nothing
#
# While the file /var/lib/tracker-backup/hold is there, neither runs nor recovery do anything.
# Exit codes: 0 success; 1 the backup failed, the tracker runs again; 2 configuration error;
# 3 skipped: the tracker is not running, or held; 4 the tracker could not be brought back;
# 75 another run holds the lock; 129, 130, 143 ended by a signal.
set -eu

for option; do
    case $option in
        --dry-run | --force | --recover) ;;
        -h | --help) exec sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" ;;
        *) printf 'maintenance-backup.sh: unknown option %s; see --help\n' "$option" >&2; exit 2 ;;
    esac
done
# Cron calls this each minute, and nearly always there is nothing to recover.
state=${TRACKER_BACKUP_STATE_DIR:-/var/lib/tracker-backup}
[[ ${1-} != --recover || -e $state/window || -e $state/restore.json ]] || exit 0
exec python3 "$(dirname -- "${BASH_SOURCE[0]}")/tracker-backup" window "$@"
