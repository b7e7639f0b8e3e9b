"""The API of local clusters, for tests and for the command line.

with start(folder) as cluster:
    cluster.kubectl("get", "nodes")
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from local_cluster import components, network, preflight, state, state_folder
from local_cluster.errors import ClusterExists, FolderInUse, NotRunning
from local_cluster.machine import Machine, remove_leftovers_of_dead_clusters, running_machines
from local_cluster.process_identity import all_pids, children, command_line
from local_cluster.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from local_cluster.clients import Clients
    from local_cluster.network import Network
    from local_cluster.object_storage import ObjectStorage
    from local_cluster.process import Process


class Cluster:
    """A one-node cluster in a folder. Create it with ``start`` or ``attach``."""

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
        """The addresses and names that differ between the clusters of this machine."""
        return self._machine.network

    @property
    def node_address(self) -> str:
        """The node's address. S3 server, API server and node ports listen on it, for pods and for this machine."""
        return self.network.node_address

    @property
    def host_address(self) -> str:
        """This machine's address on its link to the node; pods can reach servers that listen on it."""
        return self.network.host_address

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._components.clients.kubeconfig

    @property
    def clients(self) -> Clients:
        """The programs kubectl and helm, with the environment that selects the cluster."""
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
        """The API server's audit log, one JSON object per line; only with an audit policy."""
        return self._components.audit_log

    @property
    def boot_id(self) -> str:
        """The node's boot ID; it changes with each ``reboot_node``."""
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
            input: Its standard input, for ``-f -``.
            timeout: In seconds.

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
        """Imports the images of a docker-archive into the node. Pods need an imagePullPolicy other than Always.

        Raises:
            CommandFailed: The import failed; with containerd's message.
        """
        self._components.import_image(archive)

    def shim_pids(self, pod_uid: str) -> list[int]:
        """Returns the process IDs of the containerd shims of a pod's containers."""
        shims = [pid for pid in all_pids() if any("containerd-shim" in each for each in command_line(pid)[:1])]
        return [pid for pid in shims if any(f"pod{pod_uid}/" in _groups(child) for child in children(pid))]

    def node_path(self, path: str) -> Path:
        """Returns the path on this machine of a path of the node, valid until the node reboots. Don't resolve it.

        The node has its own /run, /tmp, /dev/shm, /var/lib and /var/log; everything else is this machine's.
        """
        return self._machine.root / path.lstrip("/")

    def reboot_node(self) -> None:
        """Reboots the node without a clean shutdown. It gets a new boot ID.

        All processes are killed, including control plane and S3 server. The contents of the node's memory are lost; its
        disk stays. Returns when the node is ready and its status has the new boot ID.
        """
        self._machine.power_off()
        self._components.stop_processes()
        self._boot()

    def stop(self) -> None:
        """Stops the cluster and removes everything that it created, also its folder if it created that. Idempotent."""
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
    """Installs and builds everything that ``start`` needs, which takes minutes the first time.

    Returns:
        The path of each program, by its name.

    Raises:
        MissingRequirements: This machine can't run a cluster; the message lists everything that is missing.
        StartFailed: A build failed.
    """
    with tempfile.TemporaryDirectory(prefix="tonnage-") as folder:
        preflight.ensure_requirements(Path(folder), (progress or Progress()).report)
    return components.find_programs()


def start(
    folder: Path,
    *,
    keep: bool = False,
    audit_policy: str = "",
    kubelet: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Cluster:
    """Starts a cluster.

    Args:
        folder: For all of its files; must be empty or not exist.
        keep: Keep it running after the calling thread ends. Otherwise the kernel kills it when the thread ends.
        audit_policy: The API server's audit policy, as a manifest; empty: no audit log.
        kubelet: Further fields of the kubelet's configuration.
        progress: Gets the steps.

    Raises:
        MissingRequirements: This machine can't run a cluster; the message lists everything that is missing.
        ClusterExists: The folder has a cluster already, or this machine has 16 clusters.
        FolderInUse: The folder has other files.
        StartFailed: A program did not become ready. Everything that was created has been removed.
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
            cluster._components.make_files(audit_policy, kubelet or {})  # noqa: SLF001
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
    """Stops the cluster in ``folder``, or what is left of it, and removes everything that it created.

    Raises:
        NotRunning: The folder has no cluster.
        ClusterExists: Another command is using it.
    """
    folder = folder.absolute()
    if (saved := state.read(folder)) is None:
        raise NotRunning(f"No local cluster in {folder}.")
    with state_folder.lock(folder):
        _remove(folder, saved)
        state_folder.remove_empty(saved.made_folders)
    remove_leftovers_of_dead_clusters()


def attach(folder: Path) -> Cluster:
    """Returns the cluster in ``folder`` from an earlier ``start(keep=True)``, whether it is still running or not.

    Raises:
        NotRunning: The folder has no cluster, or its start failed early.
    """
    folder = folder.absolute()
    saved = state.read(folder)
    if saved is None:
        raise NotRunning(f"No local cluster in {folder}.", "Start it: python -m local_cluster up")
    if not saved.programs:
        raise NotRunning(f"The cluster in {folder} did not start.", "Remove it: python -m local_cluster down")
    machine = Machine(folder, [Path(path) for path in saved.keep], exit_with_parent=False)
    machine.slot, machine.boot_id, machine.holder, machine.init = (saved.slot, saved.boot_id, saved.holder, saved.init)
    if not machine.is_on:
        # `start` may have been killed before it saved the holder's process ID.
        machine.holder = next((holder for holder, where in running_machines() if where == folder), None)
        machine.init = None
    cluster = Cluster(folder, machine, saved, Progress())
    for name, identity in saved.processes.items():
        if name in cluster._components.processes:  # noqa: SLF001
            cluster._components.processes[name].identity = identity  # noqa: SLF001
    return cluster


def _assemble(machine: Machine, saved: state.State, progress: Progress) -> Cluster:
    """Returns the cluster with all programs found or built, but none started."""
    preflight.ensure_requirements(machine.folder, progress.report)
    found = components.find_programs()
    saved.programs = {name: str(path) for name, path in found.items()}
    machine.keep = components.preserved_folders(found)
    saved.keep = [str(path) for path in machine.keep]
    saved.write(machine.folder)
    return Cluster(machine.folder, machine, saved, progress)


def _remove_leftovers(folder: Path) -> list[str]:
    """Removes the remains of an earlier cluster in ``folder``. Returns the folders that it had created, which stay.

    Raises:
        ClusterExists: It is running.
        FolderInUse: The folder has other files.
    """
    if leftover := state.read(folder):
        if leftover.programs and attach(folder).is_running:
            raise ClusterExists(f"A local cluster is running in {folder}.", "Stop it first, or choose another folder.")
        _remove(folder, leftover)
        return leftover.made_folders
    if any(folder.iterdir()):
        raise FolderInUse(f"{folder} is not empty, and has no cluster.", "Choose another folder.")
    return []


def _remove(folder: Path, saved: state.State) -> None:
    """Stops the cluster, which may have no programs yet, and empties its folder."""
    if saved.programs:
        leftover = attach(folder)
        leftover._state.made_folders = []  # noqa: SLF001 - the caller removes them
        leftover.stop()
    state_folder.clear(folder)


def _groups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
