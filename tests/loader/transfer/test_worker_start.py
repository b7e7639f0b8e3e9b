"""No byte of a load arrives before its workers have started, so their imports must be few."""

from __future__ import annotations

import subprocess
import sys

UNWANTED = {
    "json",
    "hashlib",
    "socket",
    "threading",
    "queue",
    "subprocess",
    "asyncio",
    "botocore",
    "tonnage.loading",
}


def test_a_worker_imports_no_slow_modules() -> None:
    program = "import sys; sys.path[:] = sys.argv[1:]; import tonnage.transfer.worker_host; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program, *sys.path]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "tonnage.transfer.worker_host" in found
    assert not UNWANTED & set(found)
