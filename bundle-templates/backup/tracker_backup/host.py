"""This host: where its files are, and what /etc/tracker-backup.conf says of it."""

from __future__ import annotations

import datetime
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .settings import Refused as Refused
from .settings import Settings as Settings
from .settings import read_settings as read_settings

CONFIG = Path(os.environ.get("TRACKER_BACKUP_CONFIG", "/etc/tracker-backup.conf"))
STATE = Path(os.environ.get("TRACKER_BACKUP_STATE_DIR", "/var/lib/tracker-backup"))
ROOT = Path(os.environ.get("TRACKER_BACKUP_ROOT", "/"))  # where the host's own files are, for tests
IN_SIDECAR = (
    "TRACKER_BACKUP_DEPLOY_DIR" in os.environ
)  # then places are the container's, and there is no Docker
REQUIRED = (
    *("ENVIRONMENT", "DEPLOY_DIR", "DESTINATION", "STRATEGY", "QUIESCE", "STOP_TIMEOUT_SECONDS"),
    *("WINDOW_TIMEOUT_SECONDS", "SCHEDULE", "LONGEST_INTERVAL_SECONDS", "CALENDAR"),
    *("IMAGE", "IMAGE_SOURCE"),
)
BUNDLE = Path(__file__).resolve().parents[2]  # when a command is run from it
RECORD = STATE / "bundle"  # a copy of the bundle that was installed last


def utc_now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=datetime.timezone.utc
    )


def config_path() -> Path:
    """The installed configuration; the uploaded bundle's own where nothing is installed, or only
    half.
    """
    return CONFIG if CONFIG.exists() else BUNDLE / "host/tracker-backup.conf"


@dataclass(frozen=True)
class Host:
    """What /etc/tracker-backup.conf says; lengths of time in seconds."""

    environment: str
    deploy_dir: Path
    destination: Path
    strategy: str
    quiesce: str
    stop_timeout: int
    window_timeout: int
    schedule: str
    longest_interval: int
    # the schedule as lists of numbers: minutes hours days months weekdays, then `both` or `either`
    calendar: str
    image: str
    image_source: str
    verify_interval: int = 0  # the longest time between two verifications; 0 without a schedule
    restic_directory: Path | None = None  # the repository, when it is a directory of this host
    database_ca_file: Path | None = None  # of an external MySQL server

    @classmethod
    def read(cls, path: Path) -> Host:
        settings = read_settings(path)
        settings.require(dict.fromkeys(REQUIRED, ""))

        def place(key: str) -> Path:
            """In the sidecar, places are the container's."""
            return Path(os.environ.get(f"TRACKER_BACKUP_{key}") or settings[key])

        def optional(key: str) -> Path | None:
            return Path(settings[key]) if key in settings else None

        return cls(
            environment=settings["ENVIRONMENT"],
            deploy_dir=place("DEPLOY_DIR"),
            destination=place("DESTINATION"),
            strategy=settings["STRATEGY"],
            quiesce=settings["QUIESCE"],
            stop_timeout=settings.seconds("STOP_TIMEOUT_SECONDS"),
            window_timeout=settings.seconds("WINDOW_TIMEOUT_SECONDS"),
            schedule=settings["SCHEDULE"],
            longest_interval=settings.seconds("LONGEST_INTERVAL_SECONDS"),
            calendar=settings["CALENDAR"],
            image=settings["IMAGE"],
            image_source=settings["IMAGE_SOURCE"],
            verify_interval=settings.seconds("VERIFY_INTERVAL_SECONDS")
            if "VERIFY_INTERVAL_SECONDS" in settings
            else 0,
            restic_directory=optional("RESTIC_DIRECTORY"),
            database_ca_file=optional("DATABASE_CA_FILE"),
        )

    @functools.cached_property
    def backup_settings(self) -> Settings:
        """backup.conf, as it is when it is first asked for."""
        return read_settings(self.configuration / "backup.conf")

    @property
    def configuration(self) -> Path:
        """The directory of backup.conf and the build context; the uploaded bundle's own where
        nothing is installed.
        """
        installed = self.deploy_dir / "backup"
        return installed if (installed / "backup.conf").exists() else BUNDLE / "backup"

    @property
    def retention_days(self) -> int:
        days = self.backup_settings.get("BACKUP_RETENTION_DAYS", "")
        if not re.fullmatch("[1-9][0-9]{0,3}", days):
            raise Refused(
                f"{self.configuration}/backup.conf: BACKUP_RETENTION_DAYS='{days}'; a number "
                "of days from 1; nothing is removed",
                2,
            )
        return int(days)

    @property
    def scope(self) -> str:
        """What of the database is backed up: `full` or `exclude-statistics`."""
        return self.backup_settings.get("BACKUP_SCOPE", "")

    @property
    def age_limit(self) -> int:
        """Seconds after which the newest success is too old."""
        return 2 * self.longest_interval

    @property
    def masked(self) -> tuple[Path, ...]:
        """What no role that reads the deploy directory may see."""
        return self.destination, self.staging, self.deploy_dir / "backup/secrets"

    def require_masked(self) -> None:
        """Refuses a masked place behind a link, because the mask covers the link's name alone."""
        deploy_dir = self.deploy_dir.resolve()
        for path in () if IN_SIDECAR else self.masked:
            real = path.resolve()
            named = deploy_dir / os.path.relpath(path, self.deploy_dir)
            if real.is_relative_to(deploy_dir) and real != named:
                raise Refused(
                    f"{path} leads through a symbolic link to {real}, below the deploy directory, "
                    "where the reader would see it: name the real path in the environment JSON, "
                    "generate and install again",
                    2,
                )

    @property
    def staging(self) -> Path:
        if IN_SIDECAR:
            return Path(os.environ.get("BACKUP_STAGING", "/staging"))
        return self.deploy_dir / "storage/backup-staging"
