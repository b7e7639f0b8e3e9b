"""Loads a plan into a verified cache entry. Used by the command line and the Python functions."""

from tonnage.loading.api import load, resolve
from tonnage.loading.load import LoadResult, run_plan
from tonnage.loading.resolve_only import resolve_plan

__all__ = ["LoadResult", "load", "resolve", "resolve_plan", "run_plan"]
