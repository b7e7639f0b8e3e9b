"""Decides the desired state from the observed state.

All functions are pure: no network, no clock, no kopf. The current time is an argument.
"""
