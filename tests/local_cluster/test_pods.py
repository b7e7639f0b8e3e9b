"""Pods on the node: DNS names, Services, logs, and no names outside of the cluster."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster
    from local_cluster_support.namespace import Namespace


def test_a_pod_runs_and_its_logs_are_readable(namespace: Namespace) -> None:
    namespace.run_server("server")
    assert "asked for /ready\n" in namespace.kubectl("logs", "server")


def test_a_service_is_reached_by_its_name_and_by_its_address(namespace: Namespace) -> None:
    namespace.run_server("server")
    address = namespace.get("service", "server")["spec"]["clusterIP"]
    names = [
        "server",
        f"server.{namespace.name}",
        f"server.{namespace.name}.svc",
        f"server.{namespace.name}.svc.cluster.local",
    ]
    output = namespace.run_fetch("client", *(f"http://{host}/{host}" for host in (*names, address)))
    assert output == "200 OK here is server\n" * 5
    assert f"asked for /server.{namespace.name}.svc\n" in namespace.kubectl("logs", "server")


def test_a_service_reaches_a_pod_that_calls_itself(namespace: Namespace) -> None:
    namespace.run_server("server")
    output = namespace.kubectl("exec", "server", "--", "/probe", "get", f"http://server.{namespace.name}/itself")
    assert output == "200 OK here is server\n"


def test_a_name_outside_of_the_cluster_fails_to_resolve_at_once(namespace: Namespace) -> None:
    began = time.monotonic()
    assert "no such host" in namespace.run_fetch("client", "http://elsewhere.example/")
    assert time.monotonic() - began < 20


def test_the_host_reaches_a_node_port(namespace: Namespace, cluster: Cluster) -> None:
    namespace.run_server("server")
    namespace.kubectl("patch", "service", "server", "-p", json.dumps({"spec": {"type": "NodePort"}}))
    port = namespace.get("service", "server")["spec"]["ports"][0]["nodePort"]
    output = namespace.run_fetch("client", f"http://{cluster.node_address}:{port}/")
    assert output == "200 OK here is server\n"


def test_the_nodes_folders_are_separate_and_accessible_from_the_host(namespace: Namespace, cluster: Cluster) -> None:
    volume = {"name": "cache", "hostPath": {"path": "/dev/shm/test-look", "type": "DirectoryOrCreate"}}
    namespace.run_server("server", mounts=[{"name": "cache", "mountPath": "/cache"}], volumes=[volume])
    assert cluster.node_path("/dev/shm/test-look").is_dir()
    assert not Path("/dev/shm/test-look").exists()


def test_a_pod_keeps_running_while_kubelet_and_containerd_are_killed_and_restarted(
    namespace: Namespace, cluster: Cluster
) -> None:
    uid = namespace.run_server("server")
    for name in ("containerd", "kubelet"):
        before = cluster.process(name).pid
        cluster.process(name).kill()
        assert not cluster.process(name).is_running
        cluster.process(name).restart()
        assert cluster.process(name).pid != before
    assert "no such host" not in namespace.run_fetch("client", "http://server/")
    (status,) = namespace.get("pod", "server")["status"]["containerStatuses"]
    assert status["restartCount"] == 0
    assert namespace.get("pod", "server")["metadata"]["uid"] == uid


def test_containers_of_a_killed_shim_are_restarted(namespace: Namespace, cluster: Cluster) -> None:
    uid = namespace.run_server("server")
    (shim,) = cluster.shim_pids(uid)
    os.kill(shim, 9)
    namespace.kubectl(
        "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/server", "--timeout=60s"
    )
    namespace.wait_ready("server")
    assert cluster.shim_pids(uid) != [shim]
