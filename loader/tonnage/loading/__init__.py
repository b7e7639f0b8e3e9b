"""From a plan to a verified cache entry: the one way through the loader, for the command line and for Python."""

from tonnage.loading.api import load, resolve
from tonnage.loading.run import LoadResult, failed_report, load_plan, resolve_plan

__all__ = ["LoadResult", "failed_report", "load", "load_plan", "resolve", "resolve_plan"]
