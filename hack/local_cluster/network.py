"""The addresses and ports of a cluster. Its machine has a network of its own: only its cable differs from others'."""

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
"""How many clusters a machine can have at once."""
PREFIX_LENGTH = 30
NODE_LINK = "eth0"


@dataclass(frozen=True)
class Network:
    """What clusters of one machine must not share, by their slot: 0 to ``MAX_CLUSTERS`` - 1."""

    slot: int

    @property
    def node_address(self) -> str:
        """The node's end of its cable to this machine."""
        return f"10.99.0.{4 * self.slot + 1}"

    @property
    def host_address(self) -> str:
        """This machine's end: pods reach here what listens on it."""
        return f"10.99.0.{4 * self.slot + 2}"

    @property
    def host_link(self) -> str:
        """The name of this machine's end."""
        return f"tonnage{self.slot}"

    @property
    def cgroup(self) -> str:
        """The name of the control group that holds the pods, below the root of each hierarchy."""
        return f"tonnage-cluster-{self.slot}"
