"""The command ``tonnage``."""
