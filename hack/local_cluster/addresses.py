"""The addresses and ports of the cluster. They are fixed, since its machine has a network of its own."""

from __future__ import annotations

NODE_NAME = "tonnage-node"
NODE_ADDRESS = "10.99.0.1"
HOST_ADDRESS = "10.99.0.2"
"""This machine's end of the cable to the node: pods reach here what listens on it."""
PREFIX_LENGTH = 30
HOST_LINK = "tonnage0"
"""The name of this machine's end. No longer than 15 characters."""
NODE_LINK = "eth0"

POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
DOMAIN = "cluster.local"

API_PORT = 6443
DNS_PORT = 53
KUBELET_PORT = 10250
S3_PORT = 8333
