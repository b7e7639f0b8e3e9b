"""Pins the files of a repository on a model hub: one commit, sizes and SHA-256 from its API.

Large files are redirected to another server, by links that expire. The hub is asked for each link once, without
following it, and again when a server denies one. The hub's token is sent to the hub only.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from tonnage.contract import ChecksumAlgorithm, ObjectPin, Verify, make_checksum
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.contract.revision import hub_place
from tonnage.errors import (
    EndpointUnreachable,
    InvalidPlan,
    ObjectNotFound,
    SourceChanged,
    StoreUnsupported,
    TonnageError,
    escape_unprintable,
)
from tonnage.source.aws_config import find_ca_bundle
from tonnage.source.client import Client, Request
from tonnage.source.credentials import Botocore
from tonnage.source.endpoint_urls import check_endpoint, is_hub_revision, is_repo, quote, quote_key, split_url
from tonnage.source.hub_token import HubTokenProvider
from tonnage.source.index_files import (
    IndexFile,
    check_indexes,
    check_shards,
    read_index_files,
    select_listed,
    with_pinned_indexes,
)
from tonnage.source.pinned import PinnedObject, PinnedSource, RequestContext
from tonnage.source.request_target import RequestTarget, allows_inner_redirects
from tonnage.source.responses import strong_etag
from tonnage.source.selection import check_pins_selected, filter_ranks, select

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tonnage.contract import FileSelection, HubSource, ObjectChecksum
    from tonnage.source.client import Response
    from tonnage.source.selection import SelectedObject, Selection

__all__ = ["HubTokenProvider", "pin_hub", "refresh_hub_targets"]

_Answer = TypeVar("_Answer")

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_ANSWER_BYTES = 64 << 20
MAX_FILES = 100_000
TRUNCATED_FILES = 10_000
"""With as many files or more, the answer about a repository may not list all: they are then listed page by page."""
MAX_PAGES = 1000
MAX_REDIRECTS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEXT = re.compile(r"<([^<>]{1,4096})>\s*;[^,]*\brel=\"?next\"?")
_NOT_A_HUB = "Check HF_ENDPOINT (spec.source.hub.endpoint): it must be the URL of a hub, not of a page on it."


class _Lfs(msgspec.Struct):
    size: int | None = None
    sha256: str = ""
    oid: str = ""


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str = msgspec.field(default="", name="blobId")
    lfs: _Lfs | None = None


class _Info(msgspec.Struct):
    sha: str
    siblings: list[_Sibling] = []


class _TreeItem(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: _Lfs | None = None


class HubFile(NamedTuple):
    """A file of a commit. ``etag`` is the SHA-256 of a large file (``lfs``), or the Git object ID of another."""

    path: str
    size: int
    etag: str
    lfs: bool

    @property
    def checksum(self) -> ObjectChecksum | None:
        """What the hub states of its bytes."""
        return make_checksum(ChecksumAlgorithm.SHA256 if self.lfs else ChecksumAlgorithm.GITSHA1, self.etag)


def pin_hub(source: HubSource, files: FileSelection, context: RequestContext, *, need_tensors: bool) -> PinnedSource:
    """Pins a repository's files at one commit, and asks the hub whether this identity may read each of them.

    Raises:
        TonnageError: The source is not valid, or its files can't be pinned.
    """
    hub = _Hub.of(source, context)
    if source.objects is not None:
        commit = _pinned_commit(source, hub.where)
        listed = {pin.key: _from_pin(pin) for pin in source.objects}
    else:
        commit, found = hub.list_files(source.revision)
        listed = {file.path: file for file in found}
    choose = partial(_select, listed, files, where=hub.where, need_tensors=need_tensors)
    selection = hub.select_listed(choose, commit, listed) if source.objects is None else choose(list(listed))
    check_pins_selected(source.objects or (), selection, where=hub.where)
    # The hub is asked for the files of all ranks: an entry shows those of other ranks, if they were loaded.
    selected = [listed[each.path] for each in selection.objects]
    targets = dict(zip([each.path for each in selected], hub.locate(selected, commit), strict=True))
    pins = {file.path: _pin(file, commit) for file in selected}
    return PinnedSource(
        place=hub_place(hub.endpoint, source.repo),
        pins=tuple(pins.values()) if source.objects is None else tuple(source.objects),
        objects=tuple(
            PinnedObject(each, pins[each.path], targets[each.path])
            for each in filter_ranks(selection.objects, files.ranks, where=hub.where)
        ),
        notes=selection.notes,
    )


def _select(
    there: Iterable[str], files: FileSelection, listed: Collection[str], *, where: str, need_tensors: bool
) -> Selection:
    return select([(path, path) for path in there], files, where=where, need_tensors=need_tensors, listed=listed)


def refresh_hub_targets(
    source: HubSource, objects: Sequence[tuple[ObjectPin, RequestTarget]], environment: Mapping[str, str]
) -> list[RequestTarget]:
    """Returns the targets of a source's objects, with new links. If the hub denies one, all stay."""
    botocore = Botocore(environment)
    provider = HubTokenProvider(anonymous=source.anonymous, botocore=botocore)
    files = [_from_pin(pin) for pin, _ in objects]
    try:
        with Client() as client:
            hub = _Hub.of(source, RequestContext(client, provider, environment, botocore, Verify.BEST))
            return hub.locate(files, objects[0][0].version_id) if objects else []
    except TonnageError:
        return [target for _, target in objects]


def _pin(file: HubFile, commit: str) -> ObjectPin:
    return ObjectPin(
        key=file.path, size=file.size, etag=file.etag, version_id=commit, checksum=str(file.checksum or "")
    )


def _from_pin(pin: ObjectPin) -> HubFile:
    """Returns a pinned file. Pins that come from an entry, or of earlier releases, may have no checksum."""
    return HubFile(pin.key, pin.size, pin.etag, lfs=_SHA256.fullmatch(pin.etag) is not None)


def _pinned_commit(source: HubSource, where: str) -> str:
    commits = {pin.version_id for pin in source.objects or ()}
    if len(commits) != 1 or not _COMMIT.fullmatch(next(iter(commits))):
        raise InvalidPlan(f"{where}: the plan's objects must have one commit as their version.")
    return commits.pop()


class _Hub(NamedTuple):
    """A repository, and how to ask for it."""

    context: RequestContext
    endpoint: str
    repo: str
    ca_bundle: str

    @classmethod
    def of(cls, source: HubSource, context: RequestContext) -> _Hub:
        """Returns the hub of a source.

        Raises:
            InvalidPlan: Repository, revision or endpoint is not valid.
        """
        if not is_repo(source.repo) or not is_hub_revision(source.revision):
            raise InvalidPlan(f"hf://{source.repo[:200]}@{source.revision[:200]} is not a repository and a revision.")
        configured = context.environment.get("HF_ENDPOINT", "").strip()
        try:
            endpoint = check_endpoint(source.endpoint or configured or DEFAULT_ENDPOINT)
        except InvalidPlan:
            if source.endpoint:
                raise
            raise InvalidPlan("HF_ENDPOINT is not an http:// or https:// URL.") from None
        return cls(context, endpoint, source.repo, find_ca_bundle(source.ca_bundle, context.environment))

    @property
    def where(self) -> str:
        """The repository's name in messages."""
        return f"hf://{self.repo}"

    def _target(self, url: str, label: str, *, token: bool = True, redirected_from: str = "") -> RequestTarget:
        return RequestTarget(
            url=url,
            ca_bundle=self.ca_bundle,
            inner_redirects=allows_inner_redirects(self.context.environment),
            hub_token=token,
            redirected_from=redirected_from,
            label=label,
        )

    def _get(self, url: str, label: str) -> Response:
        request = Request(target=self._target(url, label), provider=self.context.provider, limit=MAX_ANSWER_BYTES)
        response = self.context.client.run([request])[0]
        if response.failure is not None:
            raise response.failure.to_exception()
        return response

    def list_files(self, revision: str) -> tuple[str, list[HubFile]]:
        """Returns the commit of a revision, and its files.

        Raises:
            TonnageError: The hub denies it, or its answer can't be understood.
        """
        label = f"{self.where}@{revision}"
        url = f"{self.endpoint}/api/models/{self.repo}/revision/{quote(revision)}?blobs=true"
        info = _decode(self._get(url, label).body, _Info, label)
        if not _COMMIT.fullmatch(info.sha):
            raise StoreUnsupported(f"{label}: the hub answers without a commit.", remedy=_NOT_A_HUB)
        if _COMMIT.fullmatch(revision) and revision != info.sha:
            raise StoreUnsupported(f"{label}: the hub answers with another commit, {info.sha}.", remedy=_NOT_A_HUB)
        complete = len(info.siblings) < TRUNCATED_FILES and all(each.size is not None for each in info.siblings)
        files = [_from_sibling(each) for each in info.siblings] if complete and info.siblings else []
        return info.sha, files or self._list_tree(info.sha, label)

    def _list_tree(self, commit: str, label: str) -> list[HubFile]:
        """Lists a commit page by page."""
        files: dict[str, HubFile] = {}
        url = f"{self.endpoint}/api/models/{self.repo}/tree/{commit}?recursive=true"
        for _ in range(MAX_PAGES):
            response = self._get(url, label)
            for item in _decode(response.body, list[_TreeItem], label):
                if item.type == "file":
                    files[item.path] = _from_tree(item)
            if len(files) > MAX_FILES:
                raise InvalidPlan(f"{label}: there are more than {MAX_FILES:,} files.")
            following = _NEXT.search(response.headers.get("link", ""))
            if following is None:
                break
            if _origin(following[1]) != _origin(self.endpoint):
                raise StoreUnsupported(f"{label}: the next page of the list is on another server.", remedy=_NOT_A_HUB)
            url = following[1]
        else:
            raise StoreUnsupported(f"{label}: the list of files has more than {MAX_PAGES:,} pages.")
        if not files:
            raise ObjectNotFound(f"{label}: the repository has no files.", remedy="Check the repository and revision.")
        return list(files.values())

    def select_listed(
        self, choose: Callable[[Collection[str]], Selection], commit: str, listed: Mapping[str, HubFile]
    ) -> Selection:
        """Returns the selection without the weights that the indexes in the repository don't list."""

        def read(indexes: Sequence[SelectedObject]) -> Mapping[str, IndexFile]:
            targets = {
                each.path: self._target(self._file_url(each.path, commit), self._label(each.path)) for each in indexes
            }
            bodies, failure = read_index_files(self.context, targets)
            if failure is not None:
                raise failure.to_exception()
            found = {path: IndexFile(each.content) for path, each in bodies.items()}
            if self.context.verify.strength >= Verify.BEST.strength:
                check_indexes(found, {path: _pin(listed[path], commit) for path in found}, where=self.where)
            return found

        selection, _ = with_pinned_indexes(lambda: select_listed(choose, read, where=self.where))
        check_shards(selection, where=self.where)
        return selection

    def locate(self, files: Sequence[HubFile], commit: str) -> list[RequestTarget]:
        """Returns how to request each file: at the hub, or where the hub's answer leads.

        Raises:
            SourceChanged: The hub has another file at this commit.
            TonnageError: This identity may not read a file.
        """
        targets = [self._target(self._file_url(file.path, commit), self._label(file.path)) for file in files]
        found: dict[int, RequestTarget] = {}
        open_numbers = list(range(len(files)))
        for _ in range(MAX_REDIRECTS + 1):
            requests = [
                Request(target=targets[at], provider=self.context.provider, head=True, follow=False, pinned=True)
                for at in open_numbers
            ]
            for at, response in zip(open_numbers, self.context.client.run(requests), strict=True):
                _check_answer(response, files[at], commit, label=targets[at].label)
                location = _redirect(response, targets[at].url)
                if not location:
                    found[at] = _pinned(targets[at], files[at], etag=strong_etag(response.headers.get("etag", "")))
                elif _origin(location) == _origin(targets[at].url):
                    targets[at] = self._target(location, targets[at].label)
                else:
                    other = self._target(location, targets[at].label, token=False, redirected_from=response.address)
                    found[at] = _pinned(other, files[at], etag="")
            open_numbers = [at for at in open_numbers if at not in found]
            if not open_numbers:
                return [found[at] for at in range(len(files))]
        raise EndpointUnreachable(f"{targets[open_numbers[0]].label}: the hub redirects too often.")

    def _file_url(self, path: str, commit: str) -> str:
        return f"{self.endpoint}/{self.repo}/resolve/{commit}/{quote_key(path)}"

    def _label(self, path: str) -> str:
        return f"{self.where}/{escape_unprintable(path)}"


def _pinned(target: RequestTarget, file: HubFile, *, etag: str) -> RequestTarget:
    return msgspec.structs.replace(target, size=file.size, etag=etag)


def _check_answer(response: Response, file: HubFile, commit: str, *, label: str) -> None:
    """Checks that an answer to HEAD is about a file of the commit, with its size and hash.

    Raises:
        TonnageError: It is a failure, or about another file.
    """
    if response.failure is not None and not 300 <= response.status < 400:
        raise response.failure.to_exception()
    headers = response.headers
    stated = headers.get("x-repo-commit", commit)
    size = headers.get("x-linked-size") or (headers.get("content-length") if response.status == 200 else None)
    hashed = strong_etag(headers.get("x-linked-etag", ""))
    if stated != commit or (size and size != str(file.size)) or (hashed and file.etag and hashed != file.etag):
        raise SourceChanged(
            f"{label}: the hub has another file at this commit than its list states.",
            remedy="Load again; if it stays so, the mirror is not consistent: use another HF_ENDPOINT.",
        )


def _redirect(response: Response, url: str) -> str:
    """Returns the absolute URL to which a response redirects; empty if it doesn't.

    Raises:
        EndpointUnreachable: It redirects from https to http, or to no URL.
    """
    if not 300 <= response.status < 400:
        return ""
    location = response.headers.get("location", "")
    if location.startswith("/") and not location.startswith("//"):
        location = _origin(url) + location
    parts = split_url(location)
    if parts is None or parts.scheme not in {"http", "https"} or not location.isascii() or len(location) > 16_384:
        raise EndpointUnreachable("The hub redirects a file to no URL.", remedy=_NOT_A_HUB)
    if parts.scheme == "http" and url[:6].lower() == "https:":
        raise EndpointUnreachable(f"The hub redirects from https to http, to {parts.host}.", remedy=_NOT_A_HUB)
    return location


def _origin(url: str) -> str:
    parts = split_url(url)
    return "" if parts is None else f"{parts.scheme}://{parts.host.lower()}"


def _from_sibling(sibling: _Sibling) -> HubFile:
    if sibling.lfs is not None:
        digest = sibling.lfs.sha256 or sibling.lfs.oid
        return HubFile(sibling.rfilename, sibling.lfs.size or sibling.size or 0, digest, lfs=True)
    return HubFile(sibling.rfilename, sibling.size or 0, sibling.blob_id, lfs=False)


def _from_tree(item: _TreeItem) -> HubFile:
    if item.lfs is not None:
        return HubFile(item.path, item.lfs.size or item.size, item.lfs.oid or item.lfs.sha256, lfs=True)
    return HubFile(item.path, item.size, item.oid, lfs=False)


def _decode(body: bytes, kind: type[_Answer], label: str) -> _Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except DECODE_ERRORS as error:
        raise StoreUnsupported(
            f"{label}: the answer is not that of a hub: {escape_unprintable(str(error))[:200]}.", remedy=_NOT_A_HUB
        ) from error
