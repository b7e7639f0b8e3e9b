"""The node's machine: namespaces for processes, mounts, network, host name and IPC.

The holder (``unshare``) has one child, the machine's init process. When init is killed, the kernel kills everything in
the machine and releases its mounts, links, addresses and packet filters, so no cleanup can be missed. Only the folder
and the control groups (see ``cgroups``) outlive the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from local_cluster import cgroups, network
from local_cluster.errors import ClusterExists, NotRunning, StartFailed
from local_cluster.network import Network
from local_cluster.process_identity import ProcessIdentity, all_pids, children, command_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_INIT = Path(__file__).with_name("machine.sh")
_LOCK = "\0tonnage-local-cluster-{slot}"
"""An abstract socket, used as a lock: only one process can bind it, and the kernel frees it with its last user."""
_STOP_TIMEOUT = 60.0


@dataclass
class Machine:
    """The node's machine, on or off.

    ``keep`` are folders of this machine that the node needs at the same paths. With ``exit_with_parent`` the kernel
    kills the machine when the thread that booted it ends.
    """

    folder: Path
    keep: Sequence[Path] = ()
    exit_with_parent: bool = True
    slot: int | None = None
    holder: ProcessIdentity | None = None
    init: ProcessIdentity | None = None
    boot_id: str = ""
    _lock: socket.socket | None = None
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_on(self) -> bool:
        """Whether the holder is running."""
        return self.holder is not None and self.holder.is_running()

    def nsenter_command(self) -> tuple[str, ...]:
        """Returns the prefix of a command line that runs a command on the machine, as a child.

        Raises:
            NotRunning: The machine is off.
        """
        spaces = ("--mount", "--net", "--pid", "--uts", "--ipc")
        return (_tool("nsenter"), f"--target={self._init_process().pid}", *spaces, "--")

    @property
    def root(self) -> Path:
        """The path of the machine's root directory, valid while the machine is on. Don't resolve it.

        Raises:
            NotRunning: The machine is off.
        """
        return Path(f"/proc/{self._init_process().pid}/root")

    @property
    def network(self) -> Network:
        """The addresses of the machine's slot.

        Raises:
            NotRunning: It has no slot.
        """
        if self.slot is None:
            raise NotRunning("The machine has no slot.")
        return Network(self.slot)

    def acquire_slot(self) -> None:
        """Reserves a free slot until ``release_slot`` and the machine's end.

        Raises:
            ClusterExists: All are in use; the message lists the folders of running clusters.
        """
        for slot in range(network.MAX_CLUSTERS):
            if self._try_lock_slot(slot):
                self.slot = slot
                return
        folders = ", ".join(str(folder) for _, folder in running_machines())
        raise ClusterExists(
            f"{network.MAX_CLUSTERS} local clusters, the maximum of a machine, are running: {folders}.",
            "Remove one: python -m local_cluster --folder FOLDER down",
        )

    def reacquire_slot(self) -> bool:
        """Reserves its slot again. Returns False if another cluster has it."""
        return self.slot is not None and (self._lock is not None or self._try_lock_slot(self.slot))

    def release_slot(self) -> None:
        """Releases the slot if this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _try_lock_slot(self, slot: int) -> bool:
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(_LOCK.format(slot=slot))
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def boot(self) -> None:
        """Starts the machine with a new boot ID, and connects its network.

        Raises:
            ClusterExists: Another cluster has its slot.
            StartFailed: The kernel refused an operation; the message names it.
        """
        if not self.reacquire_slot() or self._lock is None:
            raise ClusterExists("Another local cluster uses this one's addresses.", "Stop that one first.")
        self.remove_leftovers()
        cgroups.create(self.network.cgroup)
        self.boot_id = str(uuid.uuid4())
        log = self.folder / "machine.log"
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--mount-proc"]
        command = [
            *_parent_death_command(self.exit_with_parent),
            _tool("unshare"),
            *spaces,
            "--fork",
            "--kill-child=KILL",
            "--",
        ]
        command += [str(_INIT), str(self.folder), self.boot_id, network.NODE_NAME, *map(str, self.keep)]
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
        self.holder = ProcessIdentity.from_pid(self._popen.pid)
        assert self._popen.stdout
        with self._popen.stdout as stdout:
            ready = stdout.readline() == b"ready\n"
        pids = children(self._popen.pid)
        self.init = ProcessIdentity.from_pid(pids[0]) if pids else None
        if not ready or self.init is None:
            self.power_off()
            raise StartFailed(f"The node's machine did not start:\n{log.read_text(errors='replace')[-2000:]}")
        self._connect()

    def power_off(self) -> None:
        """Kills all processes of the machine, and returns when they have ended."""
        if self.holder is not None:
            # The holder exits with init, after the kernel has killed every process of the machine.
            if self.init is not None:
                self.init.send_signal(signal.SIGKILL)
            elif first := children(self.holder.pid):
                os.kill(first[0], signal.SIGKILL)
            else:
                self.holder.send_signal(signal.SIGKILL)
            if not self.holder.wait_for_exit(_STOP_TIMEOUT):
                raise StartFailed(f"The node's machine (process {self.holder.pid}) did not exit.")
        if self._popen is not None:
            self._popen.wait()
        self.holder = self.init = self._popen = None

    def remove_leftovers(self) -> None:
        """Removes link and control groups, which can outlive the machine. It must be off, with its slot reserved."""
        with contextlib.suppress(StartFailed):  # usually the kernel has removed it already
            _ip("link", "delete", self.network.host_link)
        cgroups.remove(self.network.cgroup)

    def run(self, *command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command on the machine."""
        return subprocess.run(
            [*self.nsenter_command(), *map(str, command)], check=False, capture_output=True, text=True, timeout=timeout
        )

    def _init_process(self) -> ProcessIdentity:
        if self.init is None or not self.init.is_running():
            raise NotRunning("The node's machine is off.")
        return self.init

    def _connect(self) -> None:
        net, size = self.network, network.PREFIX_LENGTH
        host_link, node_link = net.host_link, network.NODE_LINK
        _ip("link", "add", host_link, "type", "veth", "peer", "name", node_link, "netns", str(self._init_process().pid))
        _ip("address", "add", f"{net.host_address}/{size}", "dev", host_link)
        _ip("link", "set", host_link, "up")
        inside = [
            f"address add {net.node_address}/{size} dev {node_link}",
            f"link set {node_link} up",
            "link set lo up",
        ]
        for arguments in inside:
            done = self.run(_tool("ip"), *arguments.split())
            if done.returncode:
                raise StartFailed(f"ip {arguments} failed on the node: {done.stderr.strip()}")


def remove_leftovers_of_dead_clusters() -> None:
    """Removes links and control groups of clusters that were killed."""
    for slot in range(network.MAX_CLUSTERS):
        if cgroups.exists(Network(slot).cgroup):
            leftover = Machine(Path("/nonexistent"), slot=slot)
            if leftover.reacquire_slot():
                leftover.remove_leftovers()
                leftover.release_slot()


def running_machines() -> list[tuple[ProcessIdentity, Path]]:
    """Returns the holder and the folder of each running cluster."""
    found = []
    for pid in all_pids():
        arguments = command_line(pid)
        scripts = [place for place, each in enumerate(arguments) if each.endswith("/local_cluster/machine.sh")]
        if scripts and "--kill-child=KILL" in arguments and (holder := ProcessIdentity.from_pid(pid)):
            found.append((holder, Path(arguments[scripts[0] + 1])))
    return found


def _ip(*arguments: str) -> None:
    done = subprocess.run([_tool("ip"), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")


def _parent_death_command(exit_with_parent: bool) -> list[str]:  # noqa: FBT001
    return [_tool("setpriv"), "--pdeathsig", "KILL", "--"] if exit_with_parent else []


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise StartFailed(f"{name} is not installed on this machine.")
    return found
