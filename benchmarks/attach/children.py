"""Starts contenders in processes of their own, releases them, and collects and logs their results."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = str(HERE.parents[1] / "loader")
MIB = 1 << 20
CHILD_TIMEOUT = 150


def child_environment(library: str = LIBRARY) -> dict[str, str]:
    """Returns the children's environment: PYTHONPATH begins with the library, which is this repository's by default."""
    paths = [library, str(HERE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def with_library(specs: list[dict[str, Any]], library: str) -> list[dict[str, Any]]:
    """Returns the specs, those of Tonnage with its defaults once more with another ``library``, if one is given."""
    again = [
        {**spec, "label": spec["label"].replace("tonnage", "tonnage, other release", 1), "library": library}
        for spec in specs
        if library and "tonnage" in spec["contender"] and not spec.get("options")
    ]
    return [*specs, *again]


def spawn(spec: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "contenders.py"), json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(spec.get("library", LIBRARY)),
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Waits until a contender is ready to be released, or has failed."""
    for line in process.stdout or ():
        if line.strip() == "ready":
            break


def release(process: subprocess.Popen[str]) -> None:
    """Lets a contender begin. One that has failed is left to ``collect``."""
    if process.stdin is not None and process.poll() is None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go\n")
            process.stdin.flush()


def collect(process: subprocess.Popen[str], spec: dict[str, Any]) -> dict[str, Any]:
    """Waits for a contender and returns its result, or its error."""
    try:
        out, errors = process.communicate(timeout=CHILD_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"error": f"timed out after {CHILD_TIMEOUT} s"}
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        return {"error": f"exited with {process.returncode}: {errors.strip()[-600:]}"}
    found: dict[str, Any] = json.loads(lines[-1][7:])
    if spec["contender"] == "limit":
        found["calls"] = sorted(found["calls"], key=lambda call: call["seconds"])[:1]
    return found


def log_record(record: dict[str, Any]) -> None:
    """Logs one line with a result."""
    if "error" in record:
        log(f"{record['stage']} {record['round'] + 1} {record['label']}: FAILED {record['error'][-300:]}")
        return
    rates = " ".join(f"{record['bytes'] / call['seconds'] / 1e9:.1f}" for call in record["calls"])
    extra = record.get("peak_extra_bytes")
    more = f" peak +{extra / MIB:.0f} MiB" if extra is not None else ""
    if record.get("stats"):
        first = record["stats"][0]
        more += f" (copy {first['seconds'] * 1e3:.0f} ms, allocated after {first['allocate_seconds'] * 1e3:.0f} ms)"
    log(f"{record['stage']} {record['round'] + 1} {record['label']}: {rates} GB/s{more}")


def log(text: str) -> None:
    print(text, flush=True)
