"""Devices that tensors are copied to."""
