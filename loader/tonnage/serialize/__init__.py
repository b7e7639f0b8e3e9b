"""Writes ``.tensors`` files from checkpoints, and verifies them. Needs the extra ``serialize``."""
