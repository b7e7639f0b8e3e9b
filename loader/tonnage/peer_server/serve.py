"""Runs a peer: nginx, the access service, and the watch over the files of the Secret."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from tonnage.contract.peers import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from tonnage.errors import InternalError, InvalidPlan
from tonnage.peer_server.access import AccessService
from tonnage.peer_server.access_socket import AccessServer
from tonnage.peer_server.nginx_config import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.peer_server.settings import PeerSettings

POLL_SECONDS = 0.2
SECRETS_SECONDS = 10.0
"""Seconds after which a new certificate is used."""
QUIT_SECONDS = 25.0
"""Seconds in which requests may end after a stop. nginx closes its connections after 20."""


def serve(settings: PeerSettings, *, canceled: Callable[[], bool], on_ready: Callable[[], None] = lambda: None) -> None:
    """Serves until canceled, then lets requests end.

    Args:
        settings: The settings.
        canceled: Polled several times a second.
        on_ready: Called once nginx accepts connections.

    Raises:
        InvalidPlan: The settings can't be used; the message has nginx's words.
        InternalError: nginx ended by itself.
    """
    settings.ticket_keys()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        settings.configuration.write_text(render(settings))
    except (OSError, ValueError) as error:
        raise InvalidPlan(f"nginx's configuration can't be written: {error}.") from error
    _test(settings)
    access = AccessServer(settings.socket, AccessService(settings))
    access.thread.start()
    certificates = _fingerprint(settings)
    process = subprocess.Popen(_command(settings), stdin=subprocess.DEVNULL, env=_environment())  # noqa: S603
    try:
        threading.Thread(target=_announce, args=(settings, process, on_ready), daemon=True).start()
        checked = time.monotonic()
        while not canceled():
            if process.poll() is not None:
                raise InternalError(f"nginx ended with code {process.returncode}; its words are above.")
            time.sleep(POLL_SECONDS)
            if time.monotonic() - checked > SECRETS_SECONDS:
                checked = time.monotonic()
                found = _fingerprint(settings)
                if found != certificates and found:
                    certificates = found
                    process.send_signal(signal.SIGHUP)
    finally:
        _stop(process)
        access.shutdown()
        access.server_close()


def _announce(settings: PeerSettings, process: subprocess.Popen[bytes], on_ready: Callable[[], None]) -> None:
    """Calls ``on_ready`` when nginx has written its process ID, which it does after it has begun to listen."""
    while process.poll() is None:
        if (settings.run_dir / "nginx.pid").exists():
            on_ready()
            return
        time.sleep(0.02)


def _command(settings: PeerSettings) -> list[str]:
    return [settings.nginx, "-e", "stderr", "-p", str(settings.run_dir), "-c", str(settings.configuration)]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def _test(settings: PeerSettings) -> None:
    """Has nginx check its configuration, the certificate included.

    Raises:
        InvalidPlan: nginx rejects it, or can't be run.
    """
    try:
        result = subprocess.run(  # noqa: S603
            [*_command(settings), "-t", "-q"], capture_output=True, text=True, check=False, env=_environment()
        )
    except OSError as error:
        raise InvalidPlan(f"{settings.nginx} can't be run: {error.strerror}.") from error
    (settings.run_dir / "nginx.pid").unlink(missing_ok=True)  # the check leaves one
    if result.returncode:
        raise InvalidPlan(f"nginx rejects its configuration: {' '.join(result.stderr.split())[:1000]}")


def _fingerprint(settings: PeerSettings) -> str:
    """Returns a digest of certificate and key; empty while one can't be read."""
    try:
        parts = [(settings.secrets / name).read_bytes() for name in (CERTIFICATE_FILE, PRIVATE_KEY_FILE)]
    except OSError:
        return ""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(QUIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
