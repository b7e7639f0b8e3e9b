"""A cluster leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local_cluster import cgroups, state_folder
from local_cluster.cluster import attach, delete, start
from local_cluster.errors import ClusterExists, FolderInUse, NotRunning, StartFailed
from local_cluster.machine import remove_leftovers_of_dead_clusters
from local_cluster.network import Network
from local_cluster.process_identity import ProcessIdentity, all_pids
from local_cluster.programs import ROOT, SCRIPT
from local_cluster.state import State
from local_cluster_support import leftovers
from local_cluster_support.namespace import Namespace

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = pytest.mark.usefixtures("cluster_prerequisites")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
BOOT_AND_SLEEP = """
import sys, time
from pathlib import Path
from local_cluster.machine import Machine
machine = Machine(Path(sys.argv[1]))
machine.acquire_slot()
machine.boot()
print(machine.slot, machine.holder.pid, machine.init.pid, flush=True)
time.sleep(300)
"""
"""A program that boots a machine, which must die with the program."""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "local_cluster", "--folder", str(folder), *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command and fails unless it exits with 0."""
    done = subprocess.run(
        command(folder, *arguments), env=ENVIRONMENT, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def namespace_of(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def test_the_command_starts_reboots_and_removes_a_cluster(tmp_path: Path, probe_image: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert "not/there" in run(folder, "up").stdout
    assert "ready (0 s)" in run(folder, "up").stdout
    cluster = attach(folder)
    slot = cluster.network.slot
    inside = namespace_of(cluster.process("kubelet").pid)

    cluster.import_image(probe_image)
    namespace = Namespace.create(cluster, "stays")
    volume = {"name": "cache", "hostPath": {"path": "/dev/shm/cache", "type": "DirectoryOrCreate"}}
    disk = {"name": "disk", "hostPath": {"path": "/var/lib/on-disk", "type": "DirectoryOrCreate"}}
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("cache", "disk")]
    namespace.run_server("server", mounts=mounts, volumes=[volume, disk])
    cluster.object_storage.client().create_bucket(Bucket="stays")
    cluster.node_path("/dev/shm/cache/weights").write_text("in memory")
    cluster.node_path("/var/lib/on-disk/weights").write_text("on disk")

    boot_id = cluster.boot_id
    run(folder, "reboot")
    cluster = attach(folder)
    node = run(folder, "kubectl", "get", "node", "-o", "jsonpath={.items[0].status.nodeInfo.bootID}").stdout
    assert node == cluster.boot_id != boot_id
    namespace = Namespace(cluster, "stays")
    namespace.kubectl(
        "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/server", "--timeout=60s"
    )
    namespace.wait_ready("server")
    assert not cluster.node_path("/dev/shm/cache/weights").exists()
    assert cluster.node_path("/var/lib/on-disk/weights").read_text() == "on disk"
    assert cluster.object_storage.client().list_buckets()["Buckets"][0]["Name"] == "stays"

    assert "kubelet" in run(folder, "status").stdout
    run(folder, "down")
    assert not {
        line for line in leftovers.collect_host_state(folder, slot) if str(folder) in line or f"tonnage{slot}" in line
    }
    assert inside not in map(namespace_of, all_pids())
    assert not (tmp_path / "not").exists()
    run(folder, "down")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing_after_down(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "cluster"
    before = leftovers.collect_host_state(folder, None)
    with subprocess.Popen(command(folder, "up"), env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr
        for line in up.stderr:
            if "the node's machine" in line:
                break
        slot = attach(folder).network.slot
        assert f"tonnage{slot}" in " ".join(leftovers.collect_host_state(folder, slot) - before)
        up.send_signal(number)
        up.communicate()
    if number == signal.SIGKILL:
        assert folder.exists()
        run(folder, "down")
    assert leftovers.collect_host_state(folder, slot) == before
    assert not folder.exists()


def test_a_failed_start_reports_the_cause_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "kube-apiserver").write_text("#!/bin/sh\necho no such luck\nexit 1\n")
    (assets / "kube-apiserver").chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    folder = tmp_path / "cluster"
    before = leftovers.collect_host_state(folder, None)
    with pytest.raises(StartFailed, match="kube-apiserver exited:\nno such luck"):
        start(folder)
    assert leftovers.collect_host_state(folder, None) == before
    assert not folder.exists()


def test_a_machine_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = [sys.executable, "-c", BOOT_AND_SLEEP, str(tmp_path)]
    with subprocess.Popen(script, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        slot, *pids = map(int, starter.stdout.readline().split())
        processes = [ProcessIdentity.from_pid(pid) for pid in pids]
        starter.kill()
    assert all(process and process.wait_for_exit(10) for process in processes)
    group = Network(slot).cgroup
    assert cgroups.exists(group)
    remove_leftovers_of_dead_clusters()  # every start and every stop of a cluster does this
    assert not cgroups.exists(group)


def test_other_files_in_the_folder_are_kept(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    with pytest.raises(FolderInUse, match="not empty"):
        start(tmp_path)
    with pytest.raises(FolderInUse, match="not a folder"):
        start(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_has_one_cluster_at_a_time(cluster: Cluster) -> None:
    with pytest.raises(ClusterExists, match=str(cluster.folder)):
        start(cluster.folder)
    assert cluster.is_running


def test_status_without_a_cluster_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(NotRunning) as caught:
        attach(tmp_path)
    assert "local_cluster up" in caught.value.remedy


def test_a_process_with_a_reused_pid_is_never_signalled() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        now = ProcessIdentity.from_pid(other.pid)
        assert now
        former = ProcessIdentity(now.pid, now.started - 1)
        assert not former.is_running()
        assert not former.send_signal(signal.SIGKILL)
        assert former.wait_for_exit(0)
        assert other.poll() is None
        assert now.send_signal(signal.SIGKILL)
        assert now.wait_for_exit(10)


def test_the_documented_commands_and_the_documented_example_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "contributing" / "local-cluster.md").read_text()
    documented = re.findall(r"^\$ PYTHONPATH=hack \.venv/bin/python -m local_cluster (\w+)", text, re.MULTILINE)
    known = subprocess.run(command(tmp_path, "--help"), env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert documented == ["up", "status", "kubectl", "reboot", "down"]
    assert all(re.search(rf"^ +{name} ", known.stdout, re.MULTILINE) for name in documented)
    (example,) = re.findall(r"<!-- run: python -->\n```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "docs/contributing/local-cluster.md", "exec"), {"folder": str(tmp_path / "cluster")})
    assert "0 GETs of that object so far" in capsys.readouterr().out


def test_leftovers_of_a_start_killed_during_the_build_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    State(made_folders=state_folder.create(folder), slot=3).write(folder)
    (folder / "probe").mkdir()
    with pytest.raises(NotRunning, match="did not start"):
        attach(folder)
    run(folder, "down")
    assert not folder.exists()


def test_two_commands_never_change_a_cluster_at_the_same_time(tmp_path: Path) -> None:
    State().write(tmp_path)
    with state_folder.lock(tmp_path):
        with pytest.raises(ClusterExists, match="Another command"):
            start(tmp_path)
        with pytest.raises(ClusterExists, match="Another command"):
            delete(tmp_path)
    assert (tmp_path / "cluster.json").exists()
    delete(tmp_path)
    assert not list(tmp_path.iterdir())
