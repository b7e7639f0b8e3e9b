"""Loads a plan into a verified cache entry. Used by the command line and the Python functions."""

from tonnage.loading.api import load, resolve
from tonnage.loading.load import LoadResult, failed_report, run_plan
from tonnage.loading.resolve_only import resolve_plan

__all__ = ["LoadResult", "failed_report", "load", "resolve", "resolve_plan", "run_plan"]
