"""Decides which nodes serve entries to other nodes, and with which credentials; pure functions."""
