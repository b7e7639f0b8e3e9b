"""The commands of tonnage, one a module."""
