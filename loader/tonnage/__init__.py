"""Tonnage: model weights from object storage into a verified cache on this machine."""
