"""Starts and ends the process from which workers are forked.

A command's own process forks it, which takes a millisecond: interpreter and libraries are loaded already. Not so
``tonnage.load``: it may be called in a process with CUDA and gigabytes of memory, so it starts a new interpreter, which
takes a tenth of a second. So does a command whose process has threads by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

EXIT_SECONDS = 5.0
"""Longer than the host waits for a worker."""

_BOOT = "import sys;sys.path[:]=sys.argv[2:];from tonnage.transfer.worker_host import main;main(int(sys.argv[1]))"
_TRIM_THRESHOLD, _TOP_PAD = 128 << 20, 8 << 20
"""A worker that receives in Python frees a MiB of received bytes a thousand times a second. By default glibc returns
the memory to the kernel each time and faults it in again, which took a tenth of the worker's CPU time."""
_M_TRIM_THRESHOLD, _M_TOP_PAD = -1, -2
"""The options' numbers for ``mallopt``."""
_ENVIRONMENT = 50 - 3
"""Index of ``env_start`` among the fields of ``/proc/self/stat`` that follow the command's name (proc(5))."""


class HostProcess:
    """The process, running.

    Args:
        pass_fds: File descriptors that it and the workers keep open.
        environment: Variables, of which it gets those without secrets.
        may_fork: Whether this process may be forked, if it has no other thread.

    Attributes:
        control: The socket to it.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self, *, pass_fds: Sequence[int], environment: Mapping[str, str], may_fork: bool) -> None:
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        variables = worker_environment(environment)
        self._started: subprocess.Popen[bytes] | None = None
        self._pid = 0
        try:
            with other:
                if may_fork and _has_one_thread():
                    self._pid = os.fork()
                    if not self._pid:
                        _become_host(other.fileno(), {*pass_fds, other.fileno()}, variables)
                else:
                    self._started = _start_interpreter(other.fileno(), pass_fds, variables)
        except OSError:
            self.control.close()
            raise

    def close(self) -> None:
        """Ends it. Close its workers before."""
        self.control.settimeout(EXIT_SECONDS)
        try:
            self.control.shutdown(socket.SHUT_WR)
            while self.control.recv(1):  # until its exit closes the other end, which nothing else has
                pass
        except OSError:
            self._kill()
        self.control.close()
        if self._started is not None:
            self._started.wait()
        else:
            with contextlib.suppress(ChildProcessError):  # the command was started with SIGCHLD ignored
                os.waitpid(self._pid, 0)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid or (self._started.pid if self._started is not None else 0), signal.SIGKILL)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for workers: proxies, certificate paths, the locale. No credentials."""
    wanted = ("_proxy", "_PROXY", "SSL_CERT_", "CURL_", "LANG", "LC_", "LD_LIBRARY_PATH", "TZ", "PATH")
    return {name: value for name, value in environment.items() if name.startswith(wanted) or name.endswith(wanted[:2])}


def _has_one_thread() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208  # pathlib would be slower
    except OSError:
        return False


def _start_interpreter(control: int, pass_fds: Sequence[int], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    import subprocess  # slow to import

    settings = {"MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD), "MALLOC_TOP_PAD_": str(_TOP_PAD)}
    return subprocess.Popen(  # noqa: S603  # this interpreter, no shell
        [sys.executable, "-I", "-S", "-c", _BOOT, str(control), *sys.path],
        pass_fds=(control, *pass_fds),
        env={**variables, **settings, "PYTHONDONTWRITEBYTECODE": "1", "HOME": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _become_host(control: int, kept: set[int], variables: Mapping[str, str]) -> NoReturn:
    """Makes a fork of a command's process what a new interpreter would be, and serves requests until it ends."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # The others are replaced, not closed: objects of the command that own them may still close them.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if descriptor not in {*kept, null, 2}:
                os.dup2(null, descriptor, inheritable=False)
        os.environ.clear()
        _erase_initial_environment()
        os.environ.update({**variables, "HOME": os.devnull})
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        mallopt(_M_TOP_PAD, _TOP_PAD)
        from tonnage.transfer.worker_host import main

        main(control)
    finally:
        os._exit(1)


def _erase_initial_environment() -> None:
    """Erases the memory that ``/proc/<pid>/environ`` shows, because it has the command's credentials."""
    with open("/proc/self/stat", "rb") as stream:  # noqa: PTH123
        fields = stream.read().rpartition(b")")[2].split()
    start, end = int(fields[_ENVIRONMENT]), int(fields[_ENVIRONMENT + 1])
    ctypes.memset(start, 0, end - start)
