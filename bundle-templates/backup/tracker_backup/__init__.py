"""The commands of tracker-backup; `main` tells what they are.

A module imports only from those before it in this list:

    host, log, files, state, cron     this host, and how anything is written there
    fault_points, signals             places at which the test suite, or a signal, stops a run
    protocol                          what the roles in containers answer
    documents                         what is written as JSON and read again
    runs, answers, docker             run manifests and files, what containers answer, images
    publish, roles, tables            finished files, the containers of a run, what tables it needs
    deployment, destination, secrets  what belongs to this deployment, as installed
    retention, repository, remote     what is removed; the restic repository and its copies
    workshop, server, verify          a backup, brought to life
    fetch, restore                    and back
    window, run                       the time in which the tracker is down, and the whole run
    sidecar, status                   the container that stays up; what the operator asks
    install, main                     the bundle put into its places; the command line
"""
