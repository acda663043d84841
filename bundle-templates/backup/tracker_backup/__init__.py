"""The commands of tracker-backup; `main` tells what they are.

A module imports only from those before it in this list:

    host, log, files, state, cron     this host, and how anything is written there
    fault_points                      places at which the test suite stops a run
    protocol                          what the roles in containers answer
    documents                         what is written as JSON and read again
    runs, answers, docker             run manifests and files, what containers answer, images
    jobs                              programs in containers, and one job of a role
    deployment, destination, secrets  what belongs to this deployment, as installed
    retention, repository, remote     what is removed; the restic repository and its copies
    run                               what a run calls
    workshop, drivers, verify         a backup is unpacked and imported into a server
    fetch, restore                    and back
    sidecar, status                   the container that stays up; what the operator asks
    install, main                     the bundle put into its places; the command line
"""
