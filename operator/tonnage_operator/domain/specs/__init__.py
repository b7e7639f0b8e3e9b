"""Builds the manifests of Jobs and loader containers, and the plans in them."""
