#!/bin/bash
# First start: initialises the data directory, and makes the accounts and the database of MYSQL_*.
# Then runs the server as its own user.
# Every value is escaped as an SQL string, so any password works.
set -euo pipefail

readonly DATA=/var/lib/mysql
readonly SOCKET=/var/run/mysqld/mysqld.sock

sql_string() {
    local value=${1//\\/\\\\}
    printf "'%s'" "${value//\'/\\\'}"
}

sql_name() {
    printf '\x60%s\x60' "${1//\`/\`\`}"
}

initialise() {
    if [[ -n ${MYSQL_ALLOW_EMPTY_PASSWORD:-} ]]; then MYSQL_ROOT_PASSWORD=''; fi
    : "${MYSQL_ROOT_PASSWORD?}" "${MYSQL_USER:=}" "${MYSQL_PASSWORD:=}"
    chown mysql:mysql "$DATA"
    mysqld --initialize-insecure --user=mysql --datadir="$DATA"
    local accounts="$DATA/accounts.sql"
    {
        printf "ALTER USER root@localhost IDENTIFIED BY %s;\n" \
            "$(sql_string "$MYSQL_ROOT_PASSWORD")"
        printf "CREATE USER root@'%%' IDENTIFIED BY %s;\n" "$(sql_string "$MYSQL_ROOT_PASSWORD")"
        printf "GRANT ALL ON *.* TO root@'%%' WITH GRANT OPTION;\n"
        if [[ -n ${MYSQL_DATABASE:-} ]]; then
            printf 'CREATE DATABASE %s;\n' "$(sql_name "$MYSQL_DATABASE")"
        fi
        if [[ -n $MYSQL_USER ]]; then
            printf "CREATE USER %s@'%%' IDENTIFIED BY %s;\n" \
                "$(sql_string "$MYSQL_USER")" "$(sql_string "$MYSQL_PASSWORD")"
            printf "GRANT ALL ON %s.* TO %s@'%%';\n" \
                "$(sql_name "${MYSQL_DATABASE//_/\\_}")" "$(sql_string "$MYSQL_USER")"
        fi
    } >"$accounts"
    # Not over the network, so that nobody meets a server without its accounts.
    mysqld --user=mysql --datadir="$DATA" --socket="$SOCKET" --skip-networking --daemonize \
        --pid-file="$DATA/setup.pid" --log-error="$DATA/setup.err"
    mysql --socket="$SOCKET" --user=root --default-character-set=utf8mb4 <"$accounts"
    mysqladmin --socket="$SOCKET" --user=root --password="$MYSQL_ROOT_PASSWORD" shutdown
    rm -f "$accounts"
}

if [[ ! -d $DATA/mysql ]]; then
    initialise
fi
if [[ ${1:-} != mysqld ]]; then
    set -- mysqld "$@"
fi
exec "$@" --user=mysql --datadir="$DATA" --socket="$SOCKET" --bind-address='*'
