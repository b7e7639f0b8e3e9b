"""Network namespaces that stand for nodes: each has one link to a switch, shaped in both directions. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Network:
    """Hosts by name, and the namespace of the switch, which has a port for each of them."""

    hosts: dict[str, Host]
    switch: str

    @contextlib.contextmanager
    def counting(self, target: Path) -> Iterator[None]:
        """Writes the bytes of all ports to a file, four times a second; see ``link_counters`` and ``port``."""
        command = [
            "ip",
            "netns",
            "exec",
            self.switch,
            sys.executable,
            str(Path(__file__).with_name("link_counters.py")),
        ]
        with target.open("wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file)
            try:
                yield
            finally:
                process.terminate()
                process.wait(30)

    def cut(self, name: str) -> None:
        """Takes a host's link down."""
        _run("ip", "netns", "exec", self.switch, "ip", "link", "set", self.port(name), "down")

    def slow_down(self, name: str, rate: str) -> None:
        """Gives a host's link another rate, in both directions."""
        shape = ["tc", "qdisc", "replace", "dev"]
        _run(*self.hosts[name].command(*shape, "eth0", *_shape(rate)))
        _run("ip", "netns", "exec", self.switch, *shape, self.port(name), *_shape(rate))

    def port(self, name: str) -> str:
        """Returns the name of the port that a host is connected to. What it receives, the host has sent."""
        return f"p{list(self.hosts).index(name)}"


@contextlib.contextmanager
def network(names: Sequence[str], rate: str) -> Iterator[Network]:
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
        yield Network(hosts, switch)
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
        _run(*host.command("tc", "qdisc", "add", "dev", "eth0", *_shape(rate)))
        _run("ip", "netns", "exec", switch, "tc", "qdisc", "add", "dev", port, *_shape(rate))


def _shape(rate: str) -> list[str]:
    return ["root", "tbf", "rate", rate, "burst", BURST, "latency", LATENCY]


def _run(*args: str) -> None:
    subprocess.run(args, check=True, capture_output=True)
