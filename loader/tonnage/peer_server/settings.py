"""What a peer serves, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.contract.peers import KEY_FILE, MIN_KEY_BYTES, PREVIOUS_KEY_FILE
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from pathlib import Path

_MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The settings of one server.

    Attributes:
        media: The directory of each medium, by name.
        secrets: A directory with ``tls.crt``, ``tls.key``, ``ticket-key`` and, during a rotation,
            ``ticket-key-previous``. The files are read again when they change.
        run_dir: An empty directory for the socket, the configuration and nginx's temporary files.
        address: The address to listen on, an IPv6 one in brackets; ``[::]`` is that of all interfaces and of IPv4, too.
        port: The TCP port.
        connections: Maximum number of connections from all loaders.
        connections_per_loader: Maximum number from one address.
        rate: Bytes per second of one connection; 0: no limit.
        processes: nginx's worker processes; 0: one for each core.
        ca_bundle: Trusted CAs of the stores that proofs are sent to; empty: the system's.
        local_stores: Whether proofs are sent to stores with a loopback or link-local address.
        nginx: The program.
        as_root: Whether nginx's workers stay root, if this process is; they could not reach private directories else.
    """

    media: dict[str, Path]
    secrets: Path
    run_dir: Path
    address: str = "[::]"
    port: int = 9443
    connections: int = 512
    connections_per_loader: int = 32
    rate: int = 0
    processes: int = 2
    ca_bundle: str = ""
    local_stores: bool = False
    nginx: str = "nginx"
    as_root: bool = False

    @property
    def socket(self) -> Path:
        """The socket of the service that decides who gets what."""
        return self.run_dir / "access.sock"

    @property
    def configuration(self) -> Path:
        """Nginx's configuration file."""
        return self.run_dir / "nginx.conf"

    def ticket_keys(self) -> tuple[bytes, ...]:
        """Returns the valid keys of tickets and passes, the current one first.

        Raises:
            InvalidPlan: There is no current key, or it is too short.
        """
        keys = []
        for name in (KEY_FILE, PREVIOUS_KEY_FILE):
            try:
                with (self.secrets / name).open("rb") as file:
                    key = file.read(_MAX_KEY_BYTES)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InvalidPlan(f"{self.secrets / name} can't be read: {error.strerror}.") from error
            if len(key) >= MIN_KEY_BYTES:
                keys.append(key)
            elif name == KEY_FILE:
                raise InvalidPlan(f"{self.secrets / name} has {len(key)} bytes, fewer than {MIN_KEY_BYTES}.")
        if not keys:
            raise InvalidPlan(f"{self.secrets} has no file {KEY_FILE}.")
        return tuple(keys)
