"""A target prefix in a bucket. Until everything is uploaded and verified, an object in it makes loads refuse it."""

from __future__ import annotations

import base64
import contextlib
import html
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as UnreachableError
from isal import isal_zlib
from s3transfer.subscribers import BaseSubscriber

from tonnage.contract import Layout, Plan, S3Source, Verify
from tonnage.contract.selection import UNFINISHED
from tonnage.errors import (
    AccessDenied,
    ChecksumMismatch,
    CredentialsMissing,
    EndpointUnreachable,
    Interrupted,
    RequestRejected,
    TLSVerificationFailed,
    TonnageError,
)
from tonnage.loading import resolve_plan, run_plan
from tonnage.serialize.local_target import check_present
from tonnage.serialize.os_errors import check_space, translate_target_errors
from tonnage.source.aws_config import mounted_values, s3_settings
from tonnage.source.credentials import Botocore
from tonnage.source.error_classification import classify, clean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from tonnage.contract import Progress
    from tonnage.serialize.source_files import LocalFile

PART_BYTES = 64 << 20
MAX_PARTS = 10_000
THREADS = 8
POLL_SECONDS = 0.2
_BLOCK = 4 << 20
_MARK = b'{"tonnage": "This model is being written by tonnage serialize. Until then, loads refuse it."}\n'
_REMEDY = (
    "Allow s3:PutObject, s3:GetObject, s3:DeleteObject and s3:AbortMultipartUpload on the target's objects, and "
    "s3:ListBucket on the bucket, for this identity."
)


class S3Target:
    """A prefix, which must be empty, or have only objects of the same names and ``overwrite``.

    Args:
        source: Bucket, prefix, endpoint and region.
        overwrite: Replace existing objects.
        scratch: Folder for one file at a time: what is written before it is uploaded, then what is read back.
        environment: AWS's variables.
        encrypted: Whether files are encrypted, so that a load verifies their size only.
        on_progress: Called with the progress of the load that verifies.
        canceled: Polled; True interrupts.
    """

    def __init__(
        self,
        source: S3Source,
        *,
        overwrite: bool,
        scratch: Path,
        environment: Mapping[str, str],
        encrypted: bool,
        on_progress: Callable[[Progress], None],
        canceled: Callable[[], bool],
    ) -> None:
        self._source = source
        self._prefix = source.prefix or ""
        self._overwrite = overwrite
        self._scratch = scratch
        self._environment = environment
        self._verify = Verify.SIZE if encrypted else Verify.SHA256
        self._on_progress = on_progress
        self._canceled = canceled
        self._keys: list[str] = []
        self._draft: Path | None = None
        self.label = f"s3://{source.bucket}/{self._prefix}"
        self.verified = "read back from the bucket by a load"
        self._client = make_client(source, environment)

    def check(self, names: Collection[str] | None) -> None:
        """Checks that the target may be written. ``names``: the objects to write; None: not known yet.

        Raises:
            TargetExists: There are objects.
            TonnageError: The bucket can't be listed.
        """
        present: list[str] = []
        with translate_store_errors(self.label):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._source.bucket, Prefix=self._prefix, PaginationConfig={"MaxItems": 10_000}
            )
            for page in pages:
                keys = [each["Key"][len(self._prefix) :] for each in page.get("Contents", ())]
                present += [key for key in keys if key and not key.endswith("/")]
        check_present(self.label, present, None if names is None else {*names, UNFINISHED}, overwrite=self._overwrite)

    def begin(self, size: int) -> None:
        """Marks the target as unfinished, and shows that this identity may write and delete there.

        Args:
            size: Bytes of the largest file, which must have room in the scratch folder.

        Raises:
            InsufficientSpace: There is too little space.
            TonnageError: The bucket denies it, or can't be reached.
        """
        with translate_target_errors(f"{self._scratch} can't be written"):
            self._draft = Path(tempfile.mkdtemp(prefix="tonnage-serialize-", dir=self._scratch))
            check_space(self._draft, size)
        for action in ("put", "delete", "put"):
            self._mark(action)

    def _mark(self, action: str) -> None:
        where = {"Bucket": self._source.bucket, "Key": f"{self._prefix}{UNFINISHED}"}
        with translate_store_errors(f"{self.label}{UNFINISHED}"):
            if action == "put":
                self._client.put_object(**where, Body=_MARK)
            else:
                self._client.delete_object(**where)

    def location(self, name: str) -> Path:
        """Returns where a file of weights is to be written, before it is uploaded."""
        assert self._draft is not None  # noqa: S101  # begin() was called
        path = self._draft / "files" / name
        with translate_target_errors(f"{path.parent} can't be created"):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_companion(self, file: LocalFile) -> None:
        """Uploads a companion."""
        self._upload(file.path, file.location, lambda _: None)

    def add_weights(self, name: str, location: Path, on_bytes: Callable[[int], None]) -> None:
        """Uploads a file, removes it here, and verifies the object by a load.

        Raises:
            ChecksumMismatch: What was read back differs.
            TonnageError: The upload or the load failed.
        """
        self._upload(name, location, on_bytes)
        location.unlink()
        assert self._draft is not None  # noqa: S101  # begin() was called
        with tempfile.TemporaryDirectory(dir=self._draft) as cache:
            plan = self._plan((f"{self._prefix}{name}",))
            report = run_plan(
                plan,
                cache=cache,
                environment=self._environment,
                on_progress=self._on_progress,
                canceled=self._canceled,
            ).report
        if report.verified != self._verify.value:
            raise ChecksumMismatch(f"{self.label}{name} was verified by {report.verified} only.")

    def _plan(self, keys: tuple[str, ...]) -> Plan:
        source = S3Source(
            bucket=self._source.bucket,
            keys=keys,
            endpoint=self._source.endpoint,
            region=self._source.region,
            addressing_style=self._source.addressing_style,
            ca_bundle=self._source.ca_bundle,
        )
        return Plan(sources=(source,), layout=Layout.TENSORIZER, verify=self._verify)

    def publish(self) -> str:
        """Removes the mark; returns the digest of the revision that loads of the prefix find."""
        prefix = self._prefix
        plan = self._plan(tuple(sorted(f"{prefix}{key}" for key in self._keys)))
        digest = resolve_plan(plan, environment=self._environment).digest
        self._mark("delete")
        return digest

    def close(self) -> None:
        """Removes what is left in the scratch folder."""
        if self._draft is not None:
            shutil.rmtree(self._draft, ignore_errors=True)

    def _upload(self, name: str, location: Path, on_bytes: Callable[[int], None]) -> None:
        size = location.stat().st_size
        arguments: dict[str, Any] = {}
        if self._client.meta.config.request_checksum_calculation != "when_required":
            arguments["ChecksumCRC32"] = file_crc32(location)
        part_size = max(PART_BYTES, -(-size // MAX_PARTS))
        config = TransferConfig(multipart_threshold=part_size, multipart_chunksize=part_size, max_concurrency=THREADS)
        with (
            translate_store_errors(f"{self.label}{name}"),
            create_transfer_manager(self._client, config) as manager,
        ):
            ended = threading.Event()
            subscribers = [_Subscriber(on_bytes, ended)]
            key = f"{self._prefix}{name}"
            future = manager.upload(str(location), self._source.bucket, key, arguments, subscribers)
            while not ended.wait(POLL_SECONDS):
                if self._canceled():  # leaving the context cancels the upload, and aborts its parts in the bucket
                    raise Interrupted("The upload was interrupted.", remedy="Start again with --overwrite.")
            future.result()
        self._keys.append(name)


class _Subscriber(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
    """Follows an upload."""

    def __init__(self, on_bytes: Callable[[int], None], ended: threading.Event) -> None:
        self._on_bytes = on_bytes
        self._ended = ended

    def on_progress(self, bytes_transferred: int, **_: object) -> None:
        self._on_bytes(bytes_transferred)

    def on_done(self, **_: object) -> None:
        self._ended.set()


@contextlib.contextmanager
def translate_store_errors(label: str) -> Iterator[None]:
    """Translates the errors of boto3 into those of a load.

    Args:
        label: What the request was for.

    Raises:
        TonnageError: A request failed.
    """
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, label) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CredentialsMissing(f"{label}: {clean(str(error))}.") from error
    except SSLError as error:
        raise TLSVerificationFailed(f"{label}: {clean(str(error))}.") from error
    except (HTTPClientError, UnreachableError) as error:
        raise EndpointUnreachable(f"{label}: {clean(str(error))}.") from error
    except BotoCoreError as error:
        raise RequestRejected(f"{label}: {clean(str(error))}.") from error


def _from_answer(error: ClientError, label: str) -> TonnageError:
    answer = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    code, message = (html.escape(str(answer.get(name, ""))) for name in ("Code", "Message"))
    failure = classify(
        curl_code=None,
        status=metadata.get("HTTPStatusCode"),
        headers=metadata.get("HTTPHeaders", {}),
        body=f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(),
        label=label,
    )
    found = failure.to_exception()
    if isinstance(found, AccessDenied) and not failure.remedy:
        found.remedy = _REMEDY
    return found


def make_client(source: S3Source, environment: Mapping[str, str]) -> Any:  # noqa: ANN401  # boto3 has no types
    """Returns a client of boto3 with the settings of a load: endpoint, region, addressing, CAs and credentials.

    Credentials in ``TONNAGE_CREDENTIALS_DIR`` come first, then boto3's own chain, which renews them.

    Raises:
        TonnageError: The settings are not valid.
    """
    botocore = Botocore(environment)
    with contextlib.closing(botocore):
        settings = s3_settings(source, environment, botocore.settings)
    mounted = mounted_values(environment)
    keys = {}
    if mounted.get("AWS_ACCESS_KEY_ID"):
        keys = {
            "aws_access_key_id": mounted["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": mounted.get("AWS_SECRET_ACCESS_KEY", ""),
            "aws_session_token": mounted.get("AWS_SESSION_TOKEN") or None,
        }
    style = settings.addressing_style.value
    with translate_store_errors("the target"):
        return boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            verify=settings.ca_bundle or None,
            config=Config(s3={"addressing_style": style}, retries={"mode": "standard", "total_max_attempts": 5}),
            **keys,
        )


def file_crc32(location: Path) -> str:
    """Returns a file's CRC-32 as S3 writes it: big-endian, in Base64."""
    value = 0
    with location.open("rb") as file:
        while block := file.read(_BLOCK):
            value = isal_zlib.crc32(block, value)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
