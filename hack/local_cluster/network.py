"""The addresses and ports of a cluster. Clusters have separate network namespaces; only the veth addresses differ."""

from __future__ import annotations

from dataclasses import dataclass

NODE_NAME = "tonnage-node"
POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
DOMAIN = "cluster.local"

API_PORT = 6443
DNS_PORT = 53
KUBELET_PORT = 10250
S3_PORT = 8333

MAX_CLUSTERS = 16
"""The number of clusters that can run on a machine at the same time."""
PREFIX_LENGTH = 30
NODE_LINK = "eth0"


@dataclass(frozen=True)
class Network:
    """The addresses and names that differ between clusters of a machine, by slot: 0 to ``MAX_CLUSTERS`` - 1."""

    slot: int

    @property
    def node_address(self) -> str:
        """The address of the node's end of the veth pair."""
        return f"10.99.0.{4 * self.slot + 1}"

    @property
    def host_address(self) -> str:
        """The address of this machine's end; pods can reach servers that listen on it."""
        return f"10.99.0.{4 * self.slot + 2}"

    @property
    def host_link(self) -> str:
        """The name of this machine's end of the veth pair."""
        return f"tonnage{self.slot}"

    @property
    def cgroup(self) -> str:
        """The name of the pods' control group, below the root of each hierarchy."""
        return f"tonnage-cluster-{self.slot}"
