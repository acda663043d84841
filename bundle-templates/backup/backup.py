"""The programs of the image: the package tracker_backup lies beside this file."""

import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

if sys.argv[1:2] in (["sidecar"], ["now"], ["healthy"]):
    # Cron does not pass the container's environment to its jobs.
    os.environ.setdefault("TRACKER_BACKUP_DEPLOY_DIR", "/data")
    os.environ.setdefault("TRACKER_BACKUP_DESTINATION", "/backups")
    from tracker_backup.core import main
else:
    from tracker_backup.worker.main import main

sys.exit(main(sys.argv[1:]))
