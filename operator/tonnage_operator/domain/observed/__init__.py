"""Typed, immutable views of API objects that somebody else wrote."""
