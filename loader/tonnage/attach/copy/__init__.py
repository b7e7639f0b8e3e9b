"""Copies tensors from files to a device."""
