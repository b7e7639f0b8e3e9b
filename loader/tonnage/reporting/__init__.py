"""Telling the operator how a load goes: reports by POST to the endpoint that the plan names.

A courtesy, never a duty: nothing here slows a load, fails it or keeps a process for longer than it was allowed to. What
must arrive stands in the termination message too.
"""
