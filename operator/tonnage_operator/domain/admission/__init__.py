"""Decides how a pod that requests weights is modified at admission."""
