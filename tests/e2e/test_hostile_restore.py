"""What a taken-over service can plant in its own mount must not keep a restore or a roll-back."""

from __future__ import annotations

import pytest

from e2e.deployment import STAGING, Deployment
from e2e.faults import strike
from e2e.stack import DEPLOY_DIR
from e2e.test_reports import tool

pytestmark = pytest.mark.only("sqlite3")

MOUNT = f"{DEPLOY_DIR}/storage/tracker/etc"
LONG = "雪" * 83 + "x"  # 250 bytes
TOTAL = 3900  # bytes of the long path, from the deploy directory

# Plants a file with a name of 250 bytes, and one whose path from the deploy directory has so many
# bytes; run as the service's user, by descriptors, since no system call takes such a path.
_PLANT = """
import os, sys
base, name, total, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
os.setgid(1000); os.setuid(1000)
def write(parent, name):
    with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=parent), "w") as f:
        f.write(text)
parent, length = os.open(base, os.O_RDONLY), len("storage/tracker/etc")
write(parent, name)
while total - length > 256:
    if not os.path.isdir(f"/proc/self/fd/{parent}/" + "d" * 200):
        os.mkdir("d" * 200, dir_fd=parent)
    parent, length = os.open("d" * 200, os.O_RDONLY, dir_fd=parent), length + 201
write(parent, "f" * (total - length - 1))
"""


def plant(deployment: Deployment, total: int, text: str) -> None:
    deployment.host.run("python3", "-c", _PLANT, MOUNT, LONG, str(total), text)


def contents(deployment: Deployment) -> str:
    """Path and content of what was planted. A tracker that starts changes owners and modes."""
    return deployment.host.sh(
        f"cd {MOUNT} && find . -type f -size -9c -printf '%P ' -execdir cat {{}} \\; "
        "-printf '\\n' | sort"
    )


def test_h05_long_names_are_restored_and_rolled_back(deployment: Deployment) -> None:
    """The disposable host's own file system takes paths up to about 4,000 bytes only. The unit
    tests go beyond: 4 to 8 KB.
    """
    host = deployment.host
    try:
        plant(deployment, TOTAL, "then")
        with deployment.configured(QUIESCE="none"):
            deployment.run().succeeded()
        run = deployment.last_run()["id"]
        then = contents(deployment)
        assert then.count(" then") == 2
        tool(host, "verify", run).succeeded()
        plant(deployment, TOTAL, "now")
        now = contents(deployment)
        assert now.count(" now") == 2

        # It is rolled back when the tracker does not start again. A directory in the place of a
        # file of the backup moves away with the rest.
        host.sh(f"mv {MOUNT}/tracker.toml /root/toml && mkdir {MOUNT}/tracker.toml")
        failed = strike(
            host,
            "tracker-backup",
            "restore",
            run,
            "--only",
            "config",
            "--confirm",
            at="^start",
            do="exit 1",
        )
        assert failed.code == 1 and "rolled back" in failed.output, failed.output
        assert contents(deployment) == now
        host.sh(f"rmdir {MOUNT}/tracker.toml && mv /root/toml {MOUNT}/tracker.toml")
        host.run("docker", "restart", "--time", "1", "tracker")
        deployment.wait_for_tracker()

        tool(host, "restore", run, "--only", "config", "--confirm").succeeded()
        assert contents(deployment) == then
        deployment.wait_for_tracker()
    finally:
        host.sh(
            f"rm -rf {MOUNT}/{LONG} {MOUNT}/{'d' * 200} {STAGING}/before-restore",
            check=False,
        )
