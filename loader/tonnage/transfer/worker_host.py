"""The process from which workers are forked: Python starts, and imports what workers need, once for all of them.

It has one thread and reads requests from a socket of sequenced packets. A request with a descriptor starts a worker on
that descriptor; one without asks for the exit code of a worker, by its number.
"""

from __future__ import annotations

import _socket  # not ``socket``, which is slow to import
import gc
import os
import signal
import struct
import sys
import time

from tonnage.transfer import worker
from tonnage.transfer.body import LIBRARY

NUMBER = struct.Struct("<i")
"""The form of requests, a worker's number, and of answers, its exit code; negative for a signal."""
EXIT_SECONDS = 2.0
"""How long a worker that should end is waited for before it is killed."""
FORK_FAILED = 71
"""Exit code of a worker that could not be forked (``EX_OSERR``)."""

_POLL_SECONDS = 0.001


def main(control: int) -> None:
    """Serves requests on an inherited socket until the coordinator closes it; then ends the process."""
    requests = _socket.socket(fileno=control)
    worker.load_library(LIBRARY)  # its modules and tables are those of all workers
    gc.freeze()  # a collection in a worker would copy the pages that it shares with this process
    workers: list[int] = []
    while True:
        data, passed, _, _ = requests.recvmsg(NUMBER.size, _socket.CMSG_SPACE(NUMBER.size))
        if not data:
            os._exit(0)  # workers end by themselves, because the coordinator closes their sockets too
        if passed:
            workers.append(_fork(requests, int.from_bytes(passed[0][2], sys.byteorder)))
        else:
            requests.send(NUMBER.pack(_exit_code(workers[NUMBER.unpack(data)[0]])))


def _fork(requests: _socket.socket, descriptor: int) -> int:
    """Starts a worker on a descriptor, and returns its process ID; 0 if that failed."""
    try:
        pid = os.fork()
    except OSError:  # too many processes, or too little memory
        pid = 0
    else:
        if not pid:
            requests.close()
            worker.main(descriptor)
    os.close(descriptor)
    return pid


def _exit_code(pid: int) -> int:
    """Waits for a worker, which is killed if it doesn't end, and returns its exit code."""
    if not pid:
        return FORK_FAILED
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
