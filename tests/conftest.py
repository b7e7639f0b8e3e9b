"""Loads the fixtures that all areas share."""

from __future__ import annotations

pytest_plugins = ["support.s3_fixtures", "support.tensors_fixtures", "support.receivers"]
