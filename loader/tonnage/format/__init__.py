"""Byte formats: tensorizer's ``.tensors`` files and safetensors shards. Pure functions over bytes."""
