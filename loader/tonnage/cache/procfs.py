"""Finds in ``/proc`` the mount that a path is on.

The mount is found by the kernel's own mount ID rather than by comparing paths or device numbers: ``st_dev`` is not the
device that ``/proc/locks`` prints on overlayfs and btrfs, and a path may be mounted over.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")

PROC = Path("/proc")
"""Where procfs is mounted."""


class Mount(NamedTuple):
    """One line of ``mountinfo`` (``proc_pid_mountinfo(5)``).

    ``device`` is ``major:minor`` in decimal, ``root`` the folder of the filesystem that is mounted at ``mount_point``,
    ``super_options`` are the options of the filesystem, not of this mount.
    """

    mount_id: int
    device: str
    root: str
    mount_point: str
    filesystem: str
    super_options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[Mount]:
    """Parses ``/proc/PID/mountinfo``; skips lines that are not as documented."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, filesystem_fields = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(filesystem_fields) < 3 or not fields[0].isdigit():
            continue
        mounts.append(
            Mount(
                int(fields[0]),
                fields[2],
                _unescape_octal(fields[3]),
                _unescape_octal(fields[4]),
                filesystem_fields[0],
                tuple(filesystem_fields[2].split(",")),
            )
        )
    return mounts


def read_mounts(proc: Path = PROC) -> list[Mount]:
    """Returns the mounts of this process; none if procfs can't be read."""
    try:
        return parse_mountinfo((proc / "self/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return []


def find_mount(path: Path, proc: Path = PROC) -> Mount | None:
    """Returns the mount that ``path`` is on, or None if procfs is unavailable.

    Raises:
        OSError: ``path`` can't be opened.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mount_id = _mount_id(descriptor, proc)
    finally:
        os.close(descriptor)
    return next((mount for mount in read_mounts(proc) if mount.mount_id == mount_id), None)


def _mount_id(descriptor: int, proc: Path) -> int:
    try:
        text = (proc / f"self/fdinfo/{descriptor}").read_text()
    except OSError:
        return -1
    found = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else -1


def _unescape_octal(field: str) -> str:
    """Decodes the octal escapes of space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)
