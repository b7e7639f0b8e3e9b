"""Devices that tensors are copied to: CUDA, and the CPU."""
