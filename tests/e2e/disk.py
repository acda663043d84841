"""File systems of the tests' own in the place of a directory, as shell fragments for a host.

There are small ones, and ones that lose what was not synced.
"""

from __future__ import annotations

_IMAGE = "/root/ext4.img"

# EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: the journal loses what is only in memory, as
# when the power goes.
_SHUTDOWN = (
    "import fcntl, os, struct, sys; "
    "fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))"
)


def small(directory: str, size: str) -> str:
    """A small file system in the place of a directory, with its content."""
    return (
        f"mkdir -p /root/small && mount -t tmpfs -o size={size},mode=0700 tmpfs /root/small"
        f" && cp -a {directory}/. /root/small/"
        f" && mount --bind /root/small {directory} && umount /root/small"
    )


# A container has to make its own loop devices.
LOOP_DEVICES = """
[ -e /dev/loop-control ] || mknod -m 660 /dev/loop-control c 10 237
for n in {0..63}; do [ -e /dev/loop$n ] || mknod -m 660 /dev/loop$n b 7 $n; done
"""


def ext4(directory: str) -> str:
    """An ext4 file system in the place of a directory, with its content."""
    return (
        f"{LOOP_DEVICES} truncate -s 128M {_IMAGE} && mkfs.ext4 -q {_IMAGE} && mkdir -p /root/small"
        f" && mount -o loop {_IMAGE} /root/small && rmdir /root/small/lost+found"
        f" && chmod 0700 /root/small && cp -a {directory}/. /root/small/"
        f" && mount --bind /root/small {directory} && umount /root/small"
        f" && sync --file-system {directory}"
    )


def gone(directory: str) -> str:
    """Takes `small` or `ext4` away again, frozen or not."""
    return f"fsfreeze -u {directory} 2>/dev/null; umount {directory}; rm -f {_IMAGE}"


def without_power(directory: str) -> str:
    """From now on the disk of `ext4` does nothing any more, and loses what was not synced."""
    return f'python3 -c "{_SHUTDOWN}" {directory}'


def with_power_again(directory: str) -> str:
    """The disk of `ext4`, its journal replayed, as after a boot."""
    return f"umount {directory} && mount -o loop {_IMAGE} {directory}"
