"""The commands of tracker-backup; `main` tells what they are.

A module imports only from those before it in this list:

    host, log, files, state, fault_points   this host, and how anything is written there
    runs, docker                            what there is: run manifests and their files, containers and images
    deployment, destination, secrets        what belongs to this deployment, and whether it is still as installed
    retention, repository, remote           what is removed; the restic repository and the copies in it
    run                                     what a run calls
    workshop, server, verify                a backup, brought to life
    fetch, restore                          and back
    sidecar, status                         the container that stays up; what the operator asks
    install, main                           the bundle put into its places; the command line
"""
