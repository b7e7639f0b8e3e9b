"""Decides when a new node may take pods."""
