"""This host: where its files are, and what /etc/tracker-backup.conf says of it."""

from __future__ import annotations

import datetime
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

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


class Refused(Exception):
    """What is wrong, where, and how to fix it; ends the command with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Settings(dict[str, str]):
    """The settings of one file. A key that is not there is a configuration error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, key: str) -> str:
        raise Refused(f"{self.path}: {key} is missing; install the bundle again", 2)


def read_settings(path: Path) -> Settings:
    """KEY='value' lines as a dictionary; nothing is executed."""
    settings = Settings(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"cannot read {path} ({error}); install the bundle again", 2) from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, _, quoted = line.partition("=")
        try:
            (settings[key],) = shlex.split(quoted)
        except ValueError as error:
            raise Refused(f"{path}, line {number}: expected KEY='value'", 2) from error
    return settings


def whole_seconds(settings: dict[str, str], key: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", settings[key]):
        raise ValueError(f"{key}='{settings[key]}'; time limits are whole seconds")
    return int(settings[key])


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
        for key in REQUIRED:
            if not settings.get(key):
                raise Refused(f"{path}: {key} is missing or empty; install the bundle again", 2)
        try:
            return cls(
                environment=settings["ENVIRONMENT"],
                deploy_dir=Path(
                    os.environ.get("TRACKER_BACKUP_DEPLOY_DIR", settings["DEPLOY_DIR"])
                ),
                destination=Path(
                    os.environ.get("TRACKER_BACKUP_DESTINATION", settings["DESTINATION"])
                ),
                strategy=settings["STRATEGY"],
                quiesce=settings["QUIESCE"],
                stop_timeout=whole_seconds(settings, "STOP_TIMEOUT_SECONDS"),
                window_timeout=whole_seconds(settings, "WINDOW_TIMEOUT_SECONDS"),
                schedule=settings["SCHEDULE"],
                longest_interval=whole_seconds(settings, "LONGEST_INTERVAL_SECONDS"),
                calendar=settings["CALENDAR"],
                image=settings["IMAGE"],
                image_source=settings["IMAGE_SOURCE"],
                verify_interval=whole_seconds(settings, "VERIFY_INTERVAL_SECONDS")
                if "VERIFY_INTERVAL_SECONDS" in settings
                else 0,
                restic_directory=Path(settings["RESTIC_DIRECTORY"])
                if "RESTIC_DIRECTORY" in settings
                else None,
                database_ca_file=Path(settings["DATABASE_CA_FILE"])
                if "DATABASE_CA_FILE" in settings
                else None,
            )
        except ValueError as error:
            raise Refused(f"{path}: {error}", 2) from error

    @property
    def backup_settings(self) -> dict[str, str]:
        """The container's configuration, backup.conf."""
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
    def staging(self) -> Path:
        if IN_SIDECAR:
            return Path(os.environ.get("BACKUP_STAGING", "/staging"))
        return self.deploy_dir / "storage/backup-staging"
