"""The configuration files and arguments of containerd, kubelet, kube-proxy and CNI on the node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_cluster import network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from local_cluster.network import Network

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
"""On the node, which has its own /run."""
PAUSE_IMAGE = "tonnage.dev/pause:1"
_KUBELET_HEALTH_PORT = 10248
_PROXY_HEALTH_PORT = 10256


@dataclass(frozen=True)
class NodeFiles:
    """The paths of the node's configuration files."""

    folder: Path

    @property
    def containerd(self) -> Path:
        """Containerd's configuration."""
        return self.folder / "containerd.toml"

    @property
    def cni_config(self) -> Path:
        """The folder of CNI configurations."""
        return self.folder / "cni"

    @property
    def kubelet(self) -> Path:
        """The kubelet's configuration."""
        return self.folder / "kubelet.json"

    @property
    def kube_proxy(self) -> Path:
        """kube-proxy's configuration."""
        return self.folder / "kube-proxy.json"

    @property
    def resolv_conf(self) -> Path:
        """The resolv.conf of pods with dnsPolicy Default. It is empty."""
        return self.folder / "resolv.conf"

    def kubeconfig(self, program: str) -> Path:
        """Returns the kubeconfig of ``program``."""
        return self.folder / f"{program}.kubeconfig"


def write_files(
    files: NodeFiles, net: Network, *, cni_programs: Path, kubelet_client_ca: Path, kubelet: Mapping[str, Any]
) -> None:
    """Writes all files.

    Args:
        files: Their paths.
        net: The addresses.
        cni_programs: The folder of CNI's programs.
        kubelet_client_ca: The CA of the kubelet's client certificates.
        kubelet: Further fields of the kubelet's configuration.
    """
    files.cni_config.mkdir(exist_ok=True)
    (files.cni_config / "10-pods.conflist").write_text(json.dumps(_cni_config(), indent=1))
    files.containerd.write_text(_containerd_config(cni_programs, files.cni_config))
    files.resolv_conf.write_text("")
    settings = {**_kubelet_config(net, kubelet_client_ca, files.resolv_conf), **kubelet}
    files.kubelet.write_text(json.dumps(settings, indent=1))
    files.kube_proxy.write_text(json.dumps(_kube_proxy_config(net, files.kubeconfig("kube-proxy")), indent=1))


def program_arguments(files: NodeFiles, net: Network) -> dict[str, list[str]]:
    """Returns the arguments of each program, by its name."""
    return {
        "containerd": [f"--config={files.containerd}"],
        "kubelet": [
            f"--config={files.kubelet}",
            f"--kubeconfig={files.kubeconfig('kubelet')}",
            f"--hostname-override={network.NODE_NAME}",
            f"--node-ip={net.node_address}",
        ],
        "kube-proxy": [f"--config={files.kube_proxy}"],
    }


def health_urls(net: Network) -> dict[str, str]:
    """Returns the health check URL of programs, by the program's name."""
    ports = {"kubelet": _KUBELET_HEALTH_PORT, "kube-proxy": _PROXY_HEALTH_PORT}
    return {name: f"http://{net.node_address}:{port}/healthz" for name, port in ports.items()}


def _cni_config() -> dict[str, Any]:
    """Each pod has a veth pair to the node, which routes. Without a bridge, all traffic passes kube-proxy's rules."""
    ranges = [[{"subnet": network.POD_RANGE}]]
    ptp_plugin = {
        "type": "ptp",
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    host_ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [ptp_plugin, host_ports]}


def _containerd_config(cni_programs: Path, networks: Path) -> str:
    runtimes = "plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc"
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE a process's OOM score can't be lowered, and without this line no sandbox would start.
restrict_oom_score_adj = true
# An AppArmor profile would be loaded into the kernel and outlive the cluster.
disable_apparmor = true

[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = "{cni_programs}"
conf_dir = "{networks}"

[plugins.'io.containerd.grpc.v1.cri'.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{runtimes}]
runtime_type = "io.containerd.runc.v2"

[{runtimes}.options]
SystemdCgroup = false
"""


def _kubelet_config(net: Network, clients: Path, resolv_conf: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": net.node_address,
        "port": network.KUBELET_PORT,
        "healthzBindAddress": net.node_address,
        "healthzPort": _KUBELET_HEALTH_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(clients)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{net.cgroup}",
        "failSwapOn": False,
        "clusterDNS": [net.node_address],
        "clusterDomain": network.DOMAIN,
        "resolvConf": str(resolv_conf),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # Images can't be pulled again, so image garbage collection is off.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
    }


def _kube_proxy_config(net: Network, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "iptables": {"minSyncPeriod": "0s"},
        "healthzBindAddress": f"{net.node_address}:{_PROXY_HEALTH_PORT}",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": network.NODE_NAME,
        "clusterCIDR": network.POD_RANGE,
        # The limits of connection tracking apply to the whole kernel: don't change them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
