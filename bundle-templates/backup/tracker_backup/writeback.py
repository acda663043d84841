"""Large files reach the disk in small pieces, because other programs' commits wait behind a large
one. docs/decisions/0011 has the measurements.
"""

from __future__ import annotations

import ctypes
import os

PIECE_BYTES = 8 << 20
WAIT_WRITE_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_back(descriptor: int, start: int = 0) -> None:
    """Writes what the file has from byte `start` on to the disk. A file system that cannot do it
    does it later.
    """
    for offset in range(start, os.fstat(descriptor).st_size, PIECE_BYTES):
        _libc.sync_file_range(descriptor, offset, PIECE_BYTES, WAIT_WRITE_WAIT)
