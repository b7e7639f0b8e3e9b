"""Network namespaces that stand for nodes: each has one link to a switch, shaped in both directions. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BURST = "256kb"
LATENCY = "100ms"


@dataclass(frozen=True)
class Host:
    """A namespace, and its address."""

    namespace: str
    address: str

    def command(self, *args: str) -> list[str]:
        """Returns a command that runs in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *args]

    def sent_bytes(self) -> int:
        """Returns the bytes that its link has sent, with all headers."""
        out = subprocess.run(
            self.command("ip", "-s", "-j", "link", "show", "eth0"), check=True, capture_output=True, text=True
        )
        sent: int = json.loads(out.stdout)[0]["stats64"]["tx"]["bytes"]
        return sent


@contextlib.contextmanager
def network(names: Sequence[str], rate: str) -> Iterator[dict[str, Host]]:
    """Creates a switch and a namespace for each name, and removes all of them at the end.

    Args:
        names: Names of hosts. ``controller`` has a link without a limit.
        rate: Rate of each other link in each direction, as ``tc`` takes it.
    """
    prefix = f"tnf{os.getpid()}"
    switch = f"{prefix}s"
    hosts = {name: Host(f"{prefix}-{name}", f"10.213.{at // 200}.{at % 200 + 1}") for at, name in enumerate(names, 1)}
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "netns", "exec", switch, "ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "netns", "exec", switch, "ip", "link", "set", "br0", "up")
        for at, (name, host) in enumerate(hosts.items()):
            _connect(switch, host, f"p{at}", "" if name == "controller" else rate)
        yield hosts
    finally:
        for namespace in (*(host.namespace for host in hosts.values()), switch):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def _connect(switch: str, host: Host, port: str, rate: str) -> None:
    _run("ip", "netns", "add", host.namespace)
    _run("ip", "link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _run("ip", "netns", "exec", switch, "ip", "link", "set", port, "master", "br0", "up")
    _run(*host.command("ip", "address", "add", f"{host.address}/16", "dev", "eth0"))
    _run(*host.command("ip", "link", "set", "eth0", "up"))
    _run(*host.command("ip", "link", "set", "lo", "up"))
    if rate:
        shape = ["root", "tbf", "rate", rate, "burst", BURST, "latency", LATENCY]
        _run(*host.command("tc", "qdisc", "add", "dev", "eth0", *shape))
        _run("ip", "netns", "exec", switch, "tc", "qdisc", "add", "dev", port, *shape)


def _run(*args: str) -> None:
    subprocess.run(args, check=True, capture_output=True)
