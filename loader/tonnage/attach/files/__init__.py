"""Finds tensors in cache entries and in plain files."""
