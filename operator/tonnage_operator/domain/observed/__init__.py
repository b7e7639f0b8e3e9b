"""Parses API objects into typed, immutable values."""
