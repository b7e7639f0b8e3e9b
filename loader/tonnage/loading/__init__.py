"""From a plan to a verified cache entry: the one way through the loader, for the command line and for Python."""

from tonnage.loading.api import load, resolve
from tonnage.loading.load import LoadResult, failed_report, resolve_plan, run_plan

__all__ = ["LoadResult", "failed_report", "load", "resolve", "resolve_plan", "run_plan"]
