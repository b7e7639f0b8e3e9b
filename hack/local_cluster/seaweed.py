"""The command line of SeaweedFS as one process on loopback that starts and stops quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def arguments(
    *, data: Path, users: Path, ports: Mapping[str, tuple[int, int]], sockets: str, domain: str = ""
) -> list[str]:
    """Returns the arguments of ``weed``.

    Args:
        data: The folder of its data.
        users: The JSON file of its S3 users.
        ports: The HTTP and gRPC ports of ``master``, ``volume``, ``filer`` and ``s3``.
        sockets: Prefix of the paths of its Unix sockets, which the kernel limits to 107 characters.
        domain: If set, buckets can also be addressed as host names below it.
    """
    listening = [
        f"-{part}.{kind}={port}"
        for part, both in ports.items()
        for kind, port in zip(("port", "port.grpc"), both, strict=True)
    ]
    return [
        "-logtostderr=true",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        *listening,
        "-filer",
        f"-filer.localSocket={sockets}filer.sock",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-volume.minFreeSpace=1MiB",
        "-volume.preStopSeconds=0",
        "-s3",
        f"-s3.config={users}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={sockets}s3.sock",
        *([f"-s3.domainName={domain}"] if domain else []),
    ]
