#!/usr/bin/env bash
# The program of the image. In a sidecar, operators call `backup.sh now [--dry-run]`. The program on
# the host calls the rest.
#   backup.sh idle               the container's own process: waits for roles, at most a day
#   backup.sh sidecar            the core of the sidecar: cron, by BACKUP_SCHEDULE in the zone TZ
#   backup.sh service examiner | client
#                                a service of the sidecar: lets one role talk to the core, and ends
#   backup.sh now [--dry-run]    a run now, in the sidecar
#   backup.sh healthy            whether the last success of the sidecar is recent
#   backup.sh reader | examiner | client | courier | unpacker
#                                a role: jobs on standard input, answers on standard output
#   backup.sh dump               prints a dump of the database that standard input names
# Exit codes of a run: 0 success, 1 the backup failed or is incomplete, 2 configuration error,
# 3 held, 75 another run holds the lock; 129, 130, 143 ended by a signal.
set -Eeuo pipefail
exec python3 -I -B /usr/local/lib/tracker-backup/backup.py "$@"
