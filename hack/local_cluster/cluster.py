"""The cluster as tests and the command use it.

with start(folder) as cluster:
    cluster.kubectl("get", "nodes")
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from local_cluster import components, network, preflight, state, state_folder
from local_cluster.errors import ClusterExists, FolderInUse, NotRunning
from local_cluster.machine import Machine, remove_leftovers_of_dead_clusters, running_machines
from local_cluster.process_identity import all_pids, children, command_line
from local_cluster.progress import Progress

if TYPE_CHECKING:
    from types import TracebackType

    from local_cluster.clients import Clients
    from local_cluster.network import Network
    from local_cluster.object_storage import ObjectStorage
    from local_cluster.process import Process


class Cluster:
    """A one-node cluster in a folder. Make one by ``start`` or ``attach``."""

    node_name = network.NODE_NAME

    def __init__(self, folder: Path, machine: Machine, saved: state.State, progress: Progress) -> None:
        self.folder = folder
        self._machine = machine
        self._state = saved
        self._progress = progress
        found = {name: Path(path) for name, path in saved.programs.items()}
        self._components = components.Components(folder, found, machine, audited=saved.audited)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def network(self) -> Network:
        """What is the cluster's own among the clusters of this machine."""
        return self._machine.network

    @property
    def node_address(self) -> str:
        """The node's address. The S3 server, the API server and node ports are there, for pods and for this machine."""
        return self.network.node_address

    @property
    def host_address(self) -> str:
        """This machine's address on its cable to the node: pods reach here what listens on it."""
        return self.network.host_address

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._components.clients.kubeconfig

    @property
    def clients(self) -> Clients:
        """Where kubectl and helm are, and the environment that points them at the cluster."""
        return self._components.clients

    @property
    def program_folder(self) -> Path:
        """The folder that has kubectl and helm."""
        return self.clients.kubectl_program.parent

    @property
    def object_storage(self) -> ObjectStorage:
        """The cluster's S3 server."""
        return self._components.object_storage

    @property
    def audit_log(self) -> Path:
        """What the audit policy that the cluster was started with asked for, one JSON object a line."""
        return self._components.audit_log

    @property
    def boot_id(self) -> str:
        """The node's boot ID, another one after each ``reboot_node``."""
        return self._machine.boot_id

    @property
    def is_running(self) -> bool:
        """Whether the node's machine is on."""
        return self._machine.is_on

    def processes(self) -> dict[str, Process]:
        """Returns all programs of the cluster by name."""
        return dict(self._components.processes)

    def process(self, name: str) -> Process:
        """Returns a program of the cluster: ``kubelet``, ``containerd``, ``kube-apiserver`` and so on."""
        return self._components.processes[name]

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 60) -> str:  # noqa: A002
        """Runs kubectl as the administrator and returns what it printed.

        Args:
            args: Its arguments.
            input: What it reads, for ``-f -``.
            timeout: Seconds after which it is ended.

        Raises:
            CommandFailed: It exited with an error, or ran out of time; with what it wrote to stderr.
        """
        return self._components.clients.kubectl(*args, stdin=input, timeout=timeout)

    def helm(self, *args: str, timeout: float = 300) -> str:
        """Runs helm as the administrator and returns what it printed.

        Raises:
            CommandFailed: It exited with an error, or ran out of ``timeout`` seconds; with what it wrote to stderr.
        """
        return self._components.clients.helm(*args, timeout=timeout)

    def import_image(self, archive: Path) -> None:
        """Gives the node the images of a docker-archive, under the names in it. Pods must not always pull them.

        Raises:
            CommandFailed: containerd refused; with what it says.
        """
        self._components.import_image(archive)

    def shim_pids(self, pod_uid: str) -> list[int]:
        """Returns the ids of the containerd shims that hold a pod's containers."""
        shims = [pid for pid in all_pids() if any("containerd-shim" in each for each in command_line(pid)[:1])]
        return [pid for pid in shims if any(f"pod{pod_uid}/" in _groups(child) for child in children(pid))]

    def node_path(self, path: str) -> Path:
        """Returns where a path of the node is seen from here, until the node reboots. Don't resolve it.

        The node's /run, /tmp, /dev/shm, /var/lib and /var/log are its own, everything else is this machine's.
        """
        return self._machine.root / path.lstrip("/")

    def reboot_node(self) -> None:
        """Cuts the node's power and switches it on again, with a new boot ID.

        All processes end at once, the control plane and the S3 server among them, and what was in the node's memory is
        lost; its disk stays. Returns when the node is ready again and says the new boot ID.
        """
        self._machine.power_off()
        self._components.stop_processes()
        self._boot()

    def stop(self) -> None:
        """Ends the cluster and removes all that it made, its folder included where it made that. May be repeated."""
        self._machine.power_off()
        self._components.stop_processes()
        if self._machine.reacquire_slot():
            self._machine.remove_leftovers()
            self._machine.release_slot()
        state_folder.clear(self.folder)
        state_folder.remove_empty(self._state.made_folders)

    def _boot(self) -> None:
        step = self._progress.step
        try:
            with step("the node's machine"):
                self._machine.boot()
                self._save_state()
            self._components.start(step)
        finally:
            self._save_state()

    def _save_state(self) -> None:
        self._state.boot_id = self._machine.boot_id
        self._state.holder, self._state.init = self._machine.holder, self._machine.init
        self._state.processes = {name: process.identity for name, process in self._components.processes.items()}
        self._state.write(self.folder)


def prepare(progress: Progress | None = None) -> dict[str, Path]:
    """Installs and builds what a cluster needs, so that ``start`` takes seconds; minutes, the first time.

    Returns:
        Where each program is, by its name.

    Raises:
        Lacking: This machine can't run a cluster; the message names everything that is missing.
        StartFailed: A build failed.
    """
    with tempfile.TemporaryDirectory(prefix="tonnage-") as folder:
        preflight.ensure_requirements(Path(folder), (progress or Progress()).report)
    return components.find_programs()


def start(folder: Path, *, keep: bool = False, audit_policy: str = "", progress: Progress | None = None) -> Cluster:
    """Starts a cluster whose files all lie in ``folder``, which must be empty or not there.

    Args:
        folder: Where it keeps its files.
        keep: Whether it outlives the thread that starts it. Otherwise it ends with that, however that ends.
        audit_policy: What the API server notes in ``audit_log``, as a manifest; empty: nothing.
        progress: Is told what happens.

    Raises:
        Lacking: This machine can't run one; the message names everything that is missing.
        ClusterExists: There is one in the folder, or there are 16 on this machine.
        FolderInUse: There is something else in the folder.
        StartFailed: Some part did not come up. Nothing is left behind.
    """
    folder = folder.absolute()
    made = state_folder.create(folder)
    with state_folder.lock(folder):
        saved = state.State(made_folders=_remove_leftovers(folder) or made, audited=bool(audit_policy))
        machine = Machine(folder, exit_with_parent=not keep)
        cluster = None
        try:
            remove_leftovers_of_dead_clusters()
            machine.acquire_slot()
            saved.slot = machine.slot
            saved.write(folder)
            cluster = _assemble(machine, saved, progress or Progress())
            cluster._components.make_files(audit_policy)  # noqa: SLF001
            cluster._boot()  # noqa: SLF001
        except BaseException:
            if cluster is not None:
                cluster.stop()
            else:
                machine.release_slot()
                state_folder.clear(folder)
                state_folder.remove_empty(saved.made_folders)
            raise
    return cluster


def delete(folder: Path) -> None:
    """Ends the cluster in ``folder``, or what is left of one, and removes all that it made.

    Raises:
        NotRunning: There is none.
        ClusterExists: Another command works on it.
    """
    folder = folder.absolute()
    if (saved := state.read(folder)) is None:
        raise NotRunning(f"There is no local cluster in {folder}.")
    with state_folder.lock(folder):
        _remove(folder, saved)
        state_folder.remove_empty(saved.made_folders)
    remove_leftovers_of_dead_clusters()


def attach(folder: Path) -> Cluster:
    """Returns the cluster in ``folder`` that an earlier ``start(keep=True)`` left running, or of which parts are left.

    Raises:
        NotRunning: There is none.
    """
    folder = folder.absolute()
    saved = state.read(folder)
    if saved is None:
        raise NotRunning(f"There is no local cluster in {folder}.", "Start it: python -m local_cluster up")
    if not saved.programs:
        raise NotRunning(f"The cluster in {folder} has not come up yet.", "Remove it: python -m local_cluster down")
    machine = Machine(folder, [Path(path) for path in saved.keep], exit_with_parent=False)
    machine.slot, machine.boot_id, machine.holder, machine.init = (saved.slot, saved.boot_id, saved.holder, saved.init)
    if not machine.is_on:
        # Its starter may have been killed before it could note whom it started.
        machine.holder = next((holder for holder, where in running_machines() if where == folder), None)
        machine.init = None
    cluster = Cluster(folder, machine, saved, Progress())
    for name, identity in saved.processes.items():
        if name in cluster._components.processes:  # noqa: SLF001
            cluster._components.processes[name].identity = identity  # noqa: SLF001
    return cluster


def _assemble(machine: Machine, saved: state.State, progress: Progress) -> Cluster:
    """Returns the cluster, all programs at hand, nothing started."""
    preflight.ensure_requirements(machine.folder, progress.report)
    found = components.find_programs()
    saved.programs = {name: str(path) for name, path in found.items()}
    machine.keep = components.preserved_folders(found)
    saved.keep = [str(path) for path in machine.keep]
    saved.write(machine.folder)
    return Cluster(machine.folder, machine, saved, progress)


def _remove_leftovers(folder: Path) -> list[str]:
    """Removes what is left of a cluster in ``folder``; returns the folders that it had made, which stay.

    Raises:
        ClusterExists: It runs.
        FolderInUse: There is something else in the folder.
    """
    if leftover := state.read(folder):
        if leftover.programs and attach(folder).is_running:
            raise ClusterExists(f"A local cluster runs in {folder}.", "End it first, or choose another folder.")
        _remove(folder, leftover)
        return leftover.made_folders
    if any(folder.iterdir()):
        raise FolderInUse(f"{folder} is not empty, and there is no cluster in it.", "Choose another one.")
    return []


def _remove(folder: Path, saved: state.State) -> None:
    """Ends the cluster, which may have got no further than to look for its programs, and empties its folder."""
    if saved.programs:
        leftover = attach(folder)
        leftover._state.made_folders = []  # noqa: SLF001 - the caller's business
        leftover.stop()
    state_folder.clear(folder)


def _groups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
