"""Decides the NodeCache of one node, and which entries to evict."""
