#!/bin/sh
# Gives the mounted directories to USER_ID (2770, as the published image does at every start), and
# becomes that user for good. The tracker itself is PID 1, so it ignores TERM as in production.
set -eu
: "${USER_ID:=1000}"
state='/var/lib/torrust /var/log/torrust /etc/torrust'
mkdir -p /var/lib/torrust/tracker/database
# shellcheck disable=SC2086 # a list of three paths
chown -R "$USER_ID:$USER_ID" $state
# shellcheck disable=SC2086 # a list of three paths
chmod -R 2770 $state
cd /
exec setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups "$@"
