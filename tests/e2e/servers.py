"""The four kinds of restic repository, each served by the real thing on a disposable host."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.bundle import REPOSITORY, ssh_key
from e2e.host import Host, wait_until

PASSWORD = "restic's own $(password) ñ"
USER = "copies"
ACCESS_KEY = {
    "AWS_ACCESS_KEY_ID": "e2e-access-key-id",
    "AWS_SECRET_ACCESS_KEY": "e2e-secret-access-key",
}
REST_PASSWORD = "rest-server-password"
DIRECTORY = "/srv/restic"


@dataclass
class Server:
    """A repository that this host hands out: the section `backup.restic` for it, and how to switch
    it off and on.
    """

    name: str
    section: dict[str, Any]
    start: Callable[[], None] = field(default=lambda: None)
    stop: Callable[[], None] = field(default=lambda: None)


def local(host: Host) -> Server:
    """A directory, as of a second disk."""
    host.run("mkdir", "-p", DIRECTORY)
    return Server("local", {"repository": DIRECTORY, "password": PASSWORD})


def sftp(host: Host, folder: Path) -> Server:
    """The host's own sshd, with a user of its own that may do SFTP alone; switched off by the
    firewall, since Ansible needs sshd.
    """
    folder.mkdir()
    key = ssh_key(folder)
    port = 2222
    host.sh(
        f"useradd --create-home --shell /usr/sbin/nologin {USER} && install -d -o {USER} -m "
        f"0700 /home/{USER}/.ssh"
        f" && printf 'Port 22\\nPort {port}\\nMatch User {USER}\\n  ForceCommand "
        "internal-sftp\\n' >/etc/ssh/sshd_config.d/e2e.conf"
        " && systemctl restart ssh.service"
    )
    authorized = f"home/{USER}/.ssh/authorized_keys"
    host.unpack(
        {authorized: key.with_suffix(".pub").read_text(encoding="utf-8")}, modes={authorized: 0o644}
    )
    public = host.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[{host.address}]:{port} {' '.join(public)}\n", encoding="utf-8")
    section = {
        "repository": f"sftp://{USER}@{host.address}:{port}/repository",
        "password": PASSWORD,
        "ssh_private_key_path": str(key),
        "ssh_known_hosts_path": str(known_hosts),
    }
    rule = f"INPUT -p tcp --dport {port} -j REJECT"
    return Server(
        "sftp",
        section,
        lambda: _run(host, f"iptables -D {rule}"),
        lambda: _run(host, f"iptables -I {rule}"),
    )


def rest(host: Host) -> Server:
    """rest-server, which asks for a password."""
    digest = base64.b64encode(hashlib.sha1(REST_PASSWORD.encode()).digest()).decode()
    host.unpack({"srv/rest": None, "srv/rest/.htpasswd": f"{USER}:{{SHA}}{digest}\n"})
    section = {
        "repository": f"rest:http://{USER}:{REST_PASSWORD}@{host.address}:8000/torrust/",
        "password": PASSWORD,
    }
    return _service(
        host,
        "rest",
        section,
        8000,
        "/usr/bin/restic-rest-server --path /srv/rest --htpasswd-file /srv/rest/.htpasswd "
        "--listen :8000",
    )


def s3(host: Host) -> Server:
    """rclone as an S3 server with one bucket."""
    found = shutil.which("rclone", path=str(REPOSITORY / "target/venv/bin")) or shutil.which(
        "rclone"
    )
    assert found, "no rclone in target/venv/bin or on PATH: run scripts/setup"
    host.run(
        "install",
        "-m",
        "0755",
        "/dev/stdin",
        "/usr/local/bin/rclone",
        stdin=Path(found).read_bytes(),
        seconds=300,
    )
    host.unpack({"srv/s3": None, "srv/s3/torrust": None})
    section = {
        "repository": f"s3:http://{host.address}:9000/torrust",
        "password": PASSWORD,
        "environment": ACCESS_KEY,
    }
    command = (
        f"/usr/local/bin/rclone serve s3 --auth-key {','.join(ACCESS_KEY.values())} --addr :9000 "
        "/srv/s3"
    )
    return _service(host, "s3", section, 9000, command, "Environment=HOME=/root")


def _service(
    host: Host, name: str, section: dict[str, Any], port: int, command: str, more: str = ""
) -> Server:
    unit = f"e2e-{name}.service"
    host.unpack({f"etc/systemd/system/{unit}": f"[Service]\nExecStart={command}\n{more}\n"})

    def start() -> None:
        host.run("systemctl", "start", unit)
        wait_until(
            f"{name} to listen",
            lambda: (
                host.run("bash", "-c", f": </dev/tcp/127.0.0.1/{port}", check=False).returncode == 0
            ),
            30,
        )

    host.run("systemctl", "daemon-reload")
    start()
    return Server(name, section, start, lambda: _run(host, f"systemctl stop {unit}"))


def _run(host: Host, script: str) -> None:
    host.sh(script)
