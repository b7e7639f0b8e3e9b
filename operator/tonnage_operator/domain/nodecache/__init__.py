"""Decides what one node's NodeCache records, and which entries are evicted."""
