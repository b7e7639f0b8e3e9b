"""The node as a machine of its own: namespaces for its processes, mounts, network and names.

One process holds it all (``unshare``, whose child is the machine's first process). When that one is killed, the kernel
ends everything in the machine and takes back its mounts, links, addresses and packet filters; so there is nothing to
forget. What outlives it lies in its folder, and in control groups (see ``cgroups``).
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
from local_cluster.identity import Identity, all_pids, children, command_line
from local_cluster.network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

_INIT = Path(__file__).with_name("machine.sh")
_LOCK = "\0tonnage-local-cluster-{slot}"
"""An abstract socket: the kernel gives it to one process at a time and frees it with the last one that holds it."""
_END_TIMEOUT = 60.0


@dataclass
class Machine:
    """The node's machine, off or on.

    ``keep`` are folders that the node's programs need at the paths where they are. Where ``dies_with_starter``, the
    machine ends when the thread that booted it does, however that ends.
    """

    folder: Path
    keep: Sequence[Path] = ()
    dies_with_starter: bool = True
    slot: int | None = None
    holder: Identity | None = None
    init: Identity | None = None
    boot_id: str = ""
    _lock: socket.socket | None = None
    _starter: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_on(self) -> bool:
        """Whether the machine runs."""
        return self.holder is not None and self.holder.runs()

    def enter(self) -> tuple[str, ...]:
        """Returns what to put in front of a command for it to run on the machine, as a child.

        Raises:
            NotRunning: The machine is off.
        """
        spaces = ("--mount", "--net", "--pid", "--uts", "--ipc")
        return (_tool("nsenter"), f"--target={self._first().pid}", *spaces, "--")

    @property
    def root(self) -> Path:
        """The machine's file system, seen from here. Goes away with the machine; don't resolve it.

        Raises:
            NotRunning: The machine is off.
        """
        return Path(f"/proc/{self._first().pid}/root")

    @property
    def network(self) -> Network:
        """The addresses, which come with the slot.

        Raises:
            NotRunning: No slot was taken.
        """
        if self.slot is None:
            raise NotRunning("The machine has no slot.")
        return Network(self.slot)

    def reserve(self) -> None:
        """Takes a slot, until ``release`` and the machine's end.

        Raises:
            ClusterExists: All are taken; the message says where clusters run.
        """
        for slot in range(network.SLOTS):
            if self._take(slot):
                self.slot = slot
                return
        folders = ", ".join(str(folder) for _, folder in running())
        raise ClusterExists(
            f"All {network.SLOTS} local clusters that a machine can have are there: {folders}.",
            "End one: python -m local_cluster --folder FOLDER down",
        )

    def reserve_again(self) -> bool:
        """Takes its own slot; False when another cluster has it by now."""
        return self.slot is not None and (self._lock is not None or self._take(self.slot))

    def release(self) -> None:
        """Gives the reservation back, as far as this process holds it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self, slot: int) -> bool:
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(_LOCK.format(slot=slot))
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def boot(self) -> None:
        """Switches the machine on, with a boot ID of its own, and connects it.

        Raises:
            ClusterExists: Another cluster has its slot.
            StartFailed: The kernel refused something; the message says what.
        """
        if not self.reserve_again() or self._lock is None:
            raise ClusterExists("Another local cluster has taken this one's network.", "End that one first.")
        self.clear()
        cgroups.make(self.network.control_group)
        self.boot_id = str(uuid.uuid4())
        log = self.folder / "machine.log"
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--mount-proc"]
        command = [*_tied(self.dies_with_starter), _tool("unshare"), *spaces, "--fork", "--kill-child=KILL", "--"]
        command += [str(_INIT), str(self.folder), self.boot_id, network.NODE_NAME, *map(str, self.keep)]
        with log.open("ab") as output:
            self._starter = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
        self.holder = Identity.of(self._starter.pid)
        assert self._starter.stdout
        with self._starter.stdout as said:
            up = said.readline() == b"ready\n"
        pids = children(self._starter.pid)
        self.init = Identity.of(pids[0]) if pids else None
        if not up or self.init is None:
            self.power_off()
            raise StartFailed(f"The node's machine did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        self._connect()

    def power_off(self) -> None:
        """Cuts the power: everything on the machine is gone when this returns."""
        if self.holder is not None:
            # Its parent ends with it, after the kernel has ended every process of the machine.
            if self.init is not None:
                self.init.send(signal.SIGKILL)
            elif first := children(self.holder.pid):
                os.kill(first[0], signal.SIGKILL)
            else:
                self.holder.send(signal.SIGKILL)
            if not self.holder.await_end(_END_TIMEOUT):
                raise StartFailed(f"The node's machine (process {self.holder.pid}) does not end.")
        if self._starter is not None:
            self._starter.wait()
        self.holder = self.init = self._starter = None

    def clear(self) -> None:
        """Removes what can outlive the machine outside of its folder. It must be off, and its slot reserved."""
        with contextlib.suppress(StartFailed):  # mostly the kernel was quicker
            _ip("link", "delete", self.network.host_link)
        cgroups.remove(self.network.control_group)

    def run(self, *command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command on the machine and returns how it ended."""
        return subprocess.run(
            [*self.enter(), *map(str, command)], check=False, capture_output=True, text=True, timeout=timeout
        )

    def _first(self) -> Identity:
        if self.init is None or not self.init.runs():
            raise NotRunning("The node's machine is off.")
        return self.init

    def _connect(self) -> None:
        net, size = self.network, network.PREFIX_LENGTH
        here, there = net.host_link, network.NODE_LINK
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", str(self._first().pid))
        _ip("address", "add", f"{net.host_address}/{size}", "dev", here)
        _ip("link", "set", here, "up")
        inside = [f"address add {net.node_address}/{size} dev {there}", f"link set {there} up", "link set lo up"]
        for arguments in inside:
            done = self.run(_tool("ip"), *arguments.split())
            if done.returncode:
                raise StartFailed(f"ip {arguments} failed on the node: {done.stderr.strip()}")


def sweep() -> None:
    """Removes what clusters whose starter was killed have left outside of their folders."""
    for slot in range(network.SLOTS):
        if cgroups.exists(Network(slot).control_group):
            rest = Machine(Path("/nonexistent"), slot=slot)
            if rest.reserve_again():
                rest.clear()
                rest.release()


def running() -> list[tuple[Identity, Path]]:
    """Returns who holds each machine of a cluster that runs on this machine, and its folder."""
    found = []
    for pid in all_pids():
        arguments = command_line(pid)
        scripts = [place for place, each in enumerate(arguments) if each.endswith("/local_cluster/machine.sh")]
        if scripts and "--kill-child=KILL" in arguments and (holder := Identity.of(pid)):
            found.append((holder, Path(arguments[scripts[0] + 1])))
    return found


def _ip(*arguments: str) -> None:
    done = subprocess.run([_tool("ip"), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")


def _tied(dies_with_starter: bool) -> list[str]:  # noqa: FBT001
    return [_tool("setpriv"), "--pdeathsig", "KILL", "--"] if dies_with_starter else []


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise StartFailed(f"There is no {name} on this machine.")
    return found
