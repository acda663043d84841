"""What others are told after a command: metrics, and notifications where no run of the host sent
them. It fails nothing.
"""

from __future__ import annotations

from . import metrics
from .documents import RemoteState, VerificationState
from .host import CONFIG, IN_SIDECAR, Host
from .notify import UNVERIFIED, Event, Notices, never_failing, tell
from .repository import uses_restic
from .runs import read_runs
from .said import own_log
from .state import lock_is_held
from .status import seconds_since

AFTER = ("acknowledge", "push", "restore", "rollback", "sidecar", "verify", "window")
AT_ONCE = 3  # the newest runs of the sidecar that are reported at one time
NEWS_SECONDS = 3600


def report_command(command: str, code: int) -> None:
    """Cron calls `sidecar` each minute, which reports its new runs."""
    if command not in AFTER or IN_SIDECAR or not CONFIG.exists():
        return
    with never_failing():
        host = Host.read(CONFIG)
        if command == "sidecar":
            if not tell_new_runs(host):
                return
        elif command == "verify" and code == 1 and (verified := VerificationState.peek([])):
            reason = "; ".join(verified.problems) or "the verification was not possible"
            tell(host, Event(verified.run, UNVERIFIED, code, reason, own_log()))
        metrics.write(host)


def tell_new_runs(host: Host) -> bool:
    """Tells run manifests that the sidecar wrote since the last time. Returns whether there were
    any.
    """
    if uses_restic(host) and lock_is_held():
        return False  # a copy is under way, or still to be tried
    before, remote = Notices.peek([]), RemoteState.peek([])
    runs = read_runs(host)
    told = before.sequence if before else 0
    new = [run for run in runs[-AT_ONCE:] if run.sequence > told]
    if not told:  # nobody was told of the sidecar's runs yet, and old ones are no news
        new = [run for run in new if seconds_since(run.finished) < NEWS_SECONDS]
    for run in new:
        lost = remote.error if remote and remote.tried == run.id else ""
        result = "failed" if lost and run.result == "success" else run.result
        reason, said = run.reason or lost, "\n".join(run.warnings)
        tell(host, Event(run.id, result, run.exit_code, reason, said, run.sequence))
    return bool(new)
