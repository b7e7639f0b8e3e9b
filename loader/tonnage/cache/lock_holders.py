"""Finds the processes that hold a lock.

``/proc/locks`` shows the locks of processes in this PID namespace and below, so a pod does not see those of another
pod.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.cache.procfs import PROC, find_mount

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PYTHON = r"(python|pypy)[0-9.]*"
_WORD = r"[a-z][a-z-]{0,19}"
_PROGRAM = "tonnage"


class LockHolder(msgspec.Struct, frozen=True):
    """A process that holds a lock. ``command`` is its program, for ``tonnage`` with the subcommand."""

    pid: int
    command: str
    mode: str
    """``shared`` or ``exclusive``."""


class _ProcLock(NamedTuple):
    mode: str
    pid: int
    device: tuple[int, int]
    inode: int


def find_lock_holders(path: Path, proc: Path = PROC) -> list[LockHolder]:
    """Returns the visible holders of a ``flock`` on ``path``, sorted by PID."""
    try:
        inode = path.stat().st_ino
        mount = find_mount(path, proc)
        text = (proc / "locks").read_text()
    except OSError:
        return []
    if mount is None:
        return []
    major, _, minor = mount.device.partition(":")
    device = (int(major), int(minor))
    found = {(lock.pid, lock.mode) for lock in parse_locks(text) if lock.device == device and lock.inode == inode}
    return [LockHolder(pid, command_of(pid, proc), mode) for pid, mode in sorted(found)]


def parse_locks(text: str) -> list[_ProcLock]:
    """Returns the held ``flock`` locks in ``/proc/locks`` (``proc_locks(5)``), without waiting processes."""
    locks = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        try:
            major, minor, inode = fields[5].split(":")
            place = ((int(major, 16), int(minor, 16)), int(inode))
            pid = int(fields[4])
        except ValueError:
            continue
        locks.append(_ProcLock("exclusive" if fields[3] == "WRITE" else "shared", pid, *place))
    return locks


def command_of(pid: int, proc: Path = PROC) -> str:
    """Returns the ``command_name`` of the process ``pid``; empty if it has ended or is not visible."""
    try:
        arguments = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return command_name([part.decode(errors="replace") for part in arguments.split(b"\0")[:-1]])


def command_name(arguments: Sequence[str]) -> str:
    """Returns the program of a command line, and its subcommand if the program is ``tonnage``.

    Everything else is omitted: it may be a secret or a signed URL.
    """
    if not arguments:
        return ""
    program, remaining_arguments = PurePath(arguments[0]).name, list(arguments[1:])
    if re.fullmatch(_PYTHON, program):
        program, remaining_arguments = _interpreted_program(program, remaining_arguments)
    if program == _PROGRAM and remaining_arguments and re.fullmatch(_WORD, remaining_arguments[0]):
        return f"{program} {remaining_arguments[0]}"
    return program


def describe_lock_holders(lock_holders: Sequence[LockHolder]) -> str:
    """Returns the holders as part of a sentence: ``pid 12 (tonnage hold) and pid 40 (vllm)``."""
    if not lock_holders:
        return "processes that are not visible from here (in another container, or of another user)"
    parts = [
        f"pid {holder.pid} ({holder.command or 'ended, but a child process still holds the lock'})"
        for holder in lock_holders
    ]
    shown, hidden = parts[:10], len(parts) - 10
    if hidden > 0:
        shown.append(f"{hidden} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def _interpreted_program(interpreter: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the program that a Python interpreter runs: a script, or a module after ``-m``."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        option = arguments[position]
        if option == "-m" and position + 1 < len(arguments):
            module = arguments[position + 1]
            ours = module.split(".")[0] == _PROGRAM
            return (_PROGRAM if ours else f"{interpreter} -m {module}"), arguments[position + 2 :]
        if option.startswith("-c") or option == "-":
            return interpreter, []
        position += 2 if option in {"-X", "-W"} else 1
    if position == len(arguments):
        return interpreter, []
    script = PurePath(arguments[position])
    if script.parts[-3:] == (_PROGRAM, "cli", "hold.py"):
        return _PROGRAM, ["hold"]
    return script.name, arguments[position + 1 :]
