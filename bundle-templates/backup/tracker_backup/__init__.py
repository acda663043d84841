"""The commands of tracker-backup; `main` tells what they are.

A module imports only from those before it in this list:

    protocol, writeback, priority     what the roles in containers answer
    settings, host, space             configuration files; this host, and how much is free there
    log, files, secrets, state, cron  how anything is written there, the lock
    fault_points, signals, detach     places at which the test suite, or a signal, stops a run
    documents                         what is written as JSON and read again
    runs, docker                      run manifests and their files; calls of Docker
    publish, services, roles          finished files, the roles of a run
    tables, stack                     what tables a run needs; what the stack's containers have
    jobs                              programs in containers, and one job of a role
    trees, workshop, drivers          a backup is unpacked; what a driver captures and imports
    deployment, destination           what belongs to this deployment, as installed
    retention, repository, remote     what is removed; the restic repository and its copies
    swap, undo_older                  what a restore replaces changes places, and back
    verify, extract                   proves that a backup can be restored; one file out of it
    fetch, beside, restore            and back, in place or beside what runs
    tracker, window, reach            the time in which the tracker is down
    sidecar                           the container that stays up
    outbox, said, notify              who is told how a run ended
    checks, status                    what the operator asks
    current, prepare                  the run in progress; what comes before the window
    capture, finish                   its roles in the window, and after it
    run, doctor                       the whole run; whether it would succeed
    planted, metrics, report          what Prometheus reads; what is reported after a command
    catch_up, monitoring              a run that was missed; rules and a dashboard for the stack
    install, main, core               the bundle put into its places; the commands; the sidecar
"""
