#!/usr/bin/env python3
"""Starts the package tracker_backup that lies beside this file, where the sidecar sees it."""

import sys

sys.dont_write_bytecode = True

from tracker_backup.main import main  # noqa: E402  # not before it writes no bytecode

sys.exit(main())
