"""Uploads of every kind that leave other checksums at an S3 server, by boto3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from support.s3_server import SeaweedS3

PART = 5 << 20
"""The smallest part of a multipart upload."""


def client_without_checksums(server: SeaweedS3) -> Any:
    """Returns a client that sends checksums only where S3 demands them, as clients before 2025 did."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
    )


def put(server: SeaweedS3, bucket: str, key: str, path: Path, *, algorithm: str = "", plain: bool = False) -> None:
    """Uploads by one request."""
    client = client_without_checksums(server) if plain else server.client()
    extra = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), **extra)


def upload_file(server: SeaweedS3, bucket: str, key: str, path: Path, *, plain: bool = False) -> None:
    """Uploads as ``upload_file`` does it."""
    client = client_without_checksums(server) if plain else server.client()
    client.upload_file(
        str(path), bucket, key, Config=TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    )


def multipart(
    server: SeaweedS3, bucket: str, key: str, path: Path, *, algorithm: str = "", kind: str = "", first: int = PART
) -> None:
    """Uploads in parts, the first of ``first`` bytes, with checksums of an algorithm, of the object or of the parts."""
    client = server.client() if algorithm else client_without_checksums(server)
    data, name = path.read_bytes(), {"Bucket": bucket, "Key": key}
    extra = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    upload = client.create_multipart_upload(**name, **extra, **({"ChecksumType": kind} if kind else {}))["UploadId"]
    parts = []
    for number, (start, end) in enumerate(_cuts(len(data), first), 1):
        answer = client.upload_part(**name, **extra, UploadId=upload, PartNumber=number, Body=data[start:end])
        sums = {field: value for field, value in answer.items() if field == f"Checksum{algorithm}"}
        parts.append({**sums, "ETag": answer["ETag"], "PartNumber": number})
    final = {"ChecksumType": kind} if kind == "FULL_OBJECT" else {}
    client.complete_multipart_upload(**name, **final, UploadId=upload, MultipartUpload={"Parts": parts})


def _cuts(size: int, first: int) -> list[tuple[int, int]]:
    starts = [0, *range(first, size, PART)]
    return list(zip(starts, [*starts[1:], size], strict=True))
