"""What the kernel refuses a role beyond its container, from before it reads a hostile byte.

A container cannot express these. A read-only mount still lets a process connect to a socket and
write into a pipe. A process can allocate a whole disk between two looks at the free space.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # prctl
# By machine: its number in <linux/audit.h>, then the numbers of system calls: those that are always
# refused, fallocate, socket, fcntl, ioctl, and those that open files with the place of the flags.
MACHINES = {
    "x86_64": (0xC000003E, (76, 101, 310, 311, 425, 437), 285, 41, 72, 16, {2: 1, 257: 2}),
    "aarch64": (0xC00000B7, (45, 117, 270, 271, 425, 437), 47, 198, 25, 29, {56: 2}),
}
# Landlock did not know truncation before Linux 6.2, so the filter refuses it without write access.
EMPTYING = (os.O_TRUNC | os.O_RDONLY, os.O_TRUNC | os.O_ACCMODE)
OTHER_NUMBERS = 0x40000000  # from here on, x86_64 has the calls of x32
ALLOCATING = (0x40305824, 0x40305828, 0x4030580A, 0x4030582A)  # XFS_IOC_ALLOCSP, _RESVSP
LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, FAIL = 0x7FFF0000, 0x00050000

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # on every machine
CHANGES = 0b1111111110010  # write, remove and make files of all kinds; not read or execute
TRUNCATE = 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value


def confine(network: bool, writable: Iterable[Path] = ()) -> None:
    """For this process and its children: no Unix socket, and without `network` no socket at all; no
    space allocated without writing it; no lease; no other process's memory. With `writable`,
    nothing is written elsewhere, not even into a pipe.

    A kernel that cannot do one of them does the rest.
    """
    _libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if platform.machine() in MACHINES:
        program = b"".join(struct.pack("HBBI", *one) for one in instructions(network))
        text = ctypes.create_string_buffer(program)
        header = struct.pack("HP", len(program) // 8, ctypes.addressof(text))
        if _libc.prctl(SECCOMP, FILTER, ctypes.c_char_p(header), 0, 0) != 0:
            print("this kernel does not filter system calls", file=sys.stderr)
    if places := [path for path in writable if path.exists()]:
        keep_changes_below(places)


def instructions(network: bool) -> list[Instruction]:
    machine, denied, allocate, new_socket, control, device_control, opening = MACHINES[
        platform.machine()
    ]
    refused, unsupported = fail(errno.EPERM), fail(errno.EOPNOTSUPP)
    return [
        *((LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, machine), refused),
        *((LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, OTHER_NUMBERS), refused),
        *(one for number in denied for one in ((EQUAL, 0, 1, number), refused)),
        *((EQUAL, 0, 1, allocate), unsupported),
        *(
            when(new_socket, 0, [socket.AF_UNIX], refused)
            if network
            else ((EQUAL, 0, 1, new_socket), refused)
        ),
        *(
            one
            for call, argument in opening.items()
            for one in when(call, argument, EMPTYING, refused, mask=os.O_TRUNC | os.O_ACCMODE)
        ),
        *when(control, 1, [fcntl.F_SETLEASE], refused),
        *when(device_control, 1, ALLOCATING, unsupported),
        (RETURN, 0, 0, ALLOW),
    ]


def fail(number: int) -> Instruction:
    return RETURN, 0, 0, FAIL | number


def when(
    call: int, argument: int, values: Iterable[int], then: Instruction, mask: int = 0xFFFFFFFF
) -> Iterable[Instruction]:
    """What to do if this argument of the call, or these bits of it, is one of these values."""
    tests = [one for value in values for one in ((EQUAL, 0, 1, value), then)]
    argument_at = ARGUMENTS + 8 * argument
    body = [(LOAD, 0, 0, argument_at), (AND, 0, 0, mask), *tests, (LOAD, 0, 0, NUMBER)]
    return (EQUAL, 0, len(body), call), *body


def keep_changes_below(places: Iterable[Path]) -> None:
    """Landlock also keeps a process from the memory of all that are not confined like it."""
    version = _libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    changes = CHANGES | (TRUNCATE if version >= 3 else 0)
    rules = _libc.syscall(LANDLOCK_CREATE, struct.pack("Q", changes), 8, 0)
    if rules < 0:
        return
    for place in places:
        directory = os.open(place, os.O_PATH)
        _libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", changes, directory), 0)
        os.close(directory)
    _libc.syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
