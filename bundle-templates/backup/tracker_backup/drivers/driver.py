"""What the host needs to know of a database driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..documents import RunManifest
from ..host import Host


class Driver:
    """A driver restores a file, which is swapped with the other files, or it imports into a server.
    What is here is right for a file.
    """

    NAME: str  # DB_TYPE of backup.conf, and its directory in the destination
    SETTINGS: ClassVar[
        Mapping[str, str]
    ]  # its keys of backup.conf, with the values that are allowed
    TRACKER_NAME: str  # in the tracker's own configuration
    SERVICE = ""  # the stack's service with the server; a restore leaves it running
    SAVED = ""  # the file in a restore's directory that `undo` needs
    SOURCE = "reader"  # the role that captures
    CAPTURED: tuple[str, ...]  # the files that a capture may leave

    def arguments(self, host: Host) -> dict[str, Any]:
        """What the role that captures has to know, a server's password included."""
        return {}

    def files(self, scope: str) -> dict[str, str]:
        """The files to publish, and the endings of their names in the destination."""
        raise NotImplementedError

    def expected(self, settings: Mapping[str, str]) -> str:
        """The database of backup.conf, in the words of `uses`."""
        raise NotImplementedError

    def uses(self, database: Mapping[str, str]) -> str:
        """The database that `[core.database]` of the tracker's configuration means: its `path`, or
        with schema 3 a server's `host`, `port` and `database`. Empty if it does not say.
        """
        raise NotImplementedError

    def check_mounts(self, host: Host, mounts: Mapping[str, str]) -> None:
        """Refuses if the tracker, with these host directories by target, has another database."""

    def service(self, host: Host) -> str:
        """SERVICE if this host's database is there."""
        return ""

    def target(self, host: Host) -> str:
        """The file below the deploy directory that a restore swaps; empty if it imports."""
        return ""

    def prove_login(self, host: Host) -> None:
        """Refuses if a restore could not log in. Nothing is changed."""

    def prove_rights(self, host: Host) -> None:
        """Refuses if an import would fail for want of a right. Nothing is changed."""

    def replace(
        self, host: Host, work: Path, dumps: list[Path], run: RunManifest, begin: Callable[[], None]
    ) -> None:
        """Imports the dumps. Calls `begin` after the present database was saved, and before it is
        dropped.
        """

    def undo(self, host: Host, work: Path) -> None:
        """Puts the saved database back."""

    def verify(self, host: Host, run: RunManifest, dumps: list[Path], image: str) -> list[str]:
        """Imports the dumps into a throw-away server. Returns what differs from the run
        manifest.
        """
        return []
