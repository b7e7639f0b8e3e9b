"""Tonnage on a local one-node cluster: `make cluster-up` for playing, `make demo-cluster` for its story."""
