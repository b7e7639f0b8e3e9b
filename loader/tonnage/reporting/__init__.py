"""Sends reports of a load to the operator, by POST to the endpoint in the plan.

Reports are best effort: they never delay or fail a load, and never keep a process alive beyond its timeout. The
termination message carries everything essential.
"""
