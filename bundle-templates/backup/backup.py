"""Starts a role of the image: the package tracker_backup lies beside this file."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from tracker_backup.worker.main import main  # noqa: E402  # not before it is known where

sys.exit(main(sys.argv[1:]))
