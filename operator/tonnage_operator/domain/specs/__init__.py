"""Builds the manifests of Jobs, loader containers and plans, and nothing else."""
