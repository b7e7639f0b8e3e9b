"""A model hub for tests, on real sockets: the API and the files on one server, the content of large files on another.

It answers as huggingface.co does to what loaders ask: a revision with its files, a commit's tree page by page, files at
a commit. Small files are in Git, and are redirected on the same host; large ones are in LFS, and are redirected to the
other server by links that expire. ``huggingface_hub`` downloads from it with ``HF_ENDPOINT``.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

LFS_BYTES = 4096
"""Files of this size or more are in LFS."""
LINK_SECONDS = 3600.0


@dataclass(frozen=True)
class HubRequest:
    """A request. ``server`` is ``hub`` or ``cdn``."""

    server: str
    method: str
    path: str
    token: str
    range: str


@dataclass
class Repository:
    """A repository: the files of each commit, the commit of each branch, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


class HubServer:
    """Both servers, running from creation until ``close``. ``token`` is the one that may read everything."""

    token = "hf_" + "a" * 34

    def __init__(self, host: str = "127.0.0.1", other_host: str = "localhost", *, path: str = "") -> None:
        self.path = path
        """Path below which the hub is, as behind a proxy for several hubs."""
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        """New names of renamed repositories."""
        self.requests: list[HubRequest] = []
        self.page_size = 1000
        self.with_sizes = True
        self.xet = False
        """Whether large files are in Xet storage, which answers and headers name beside LFS."""
        self.rate_limits: list[dict[str, str]] = []
        """Headers of the next answers of the hub, each with status 429."""
        self.damaged: list[int] = []
        """Bytes of the next answers of the other server that are flipped."""
        self.damaged_in_git: dict[str, list[int]] = {}
        """By the name of a small file, bytes of the next answers with it that are flipped."""
        self.expire_after: list[int] = []
        """Numbers of requests to the other server after which all links that exist expire."""
        self._links: dict[str, tuple[bytes, float]] = {}
        self._uses = 0
        self._lock = threading.Lock()
        self._hub = _Server(self, "hub", host)
        self._cdn = _Server(self, "cdn", other_host)
        self.endpoint = f"http://{host}:{self._hub.server_port}{path}"
        self.cdn = f"http://{other_host}:{self._cdn.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def push(
        self, repo: str, files: Mapping[str, bytes], *, branch: str = "main", gated: bool = False, private: bool = False
    ) -> str:
        """Commits these files to a branch, and returns the commit."""
        found = self.repositories.setdefault(repo, Repository(gated=gated, private=private))
        seed = json.dumps([repo, branch, len(found.commits), sorted(files)])
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        found.commits[commit] = dict(files)
        found.branches[branch] = commit
        return commit

    def count(self, server: str, method: str = "", part: str = "") -> int:
        return sum(
            each.server == server and method in {"", each.method} and part in each.path for each in self.requests
        )

    def link(self, data: bytes) -> str:
        """Returns a new link to a large file's content."""
        with self._lock:
            key = f"/{hashlib.sha256(data).hexdigest()}?Expires={time.time() + LINK_SECONDS:.3f}&id={len(self._links)}"
            self._links[key] = (data, time.time() + LINK_SECONDS)
            return self.cdn + key

    def use_link(self, path: str) -> bytes | None:
        """Returns the content at a link; None if it has expired."""
        with self._lock:
            self._uses += 1
            if self.expire_after and self._uses > self.expire_after[0]:
                self.expire_after.pop(0)
                self._links = {link: (data, 0.0) for link, (data, _) in self._links.items()}
            data, expires = self._links.get(path, (b"", 0.0))
            return data if time.time() < expires else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, name: str, host: str) -> None:
        super().__init__((host, 0), _Handler)
        self.hub = hub
        self.name = name
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append(HubRequest(self.server.name, self.command, self.path, token, self.headers.get("Range", "")))
        if self.server.name == "cdn":
            self._send_content()
            return
        if hub.rate_limits:
            self._send(429, b'{"error":"You have hit the rate limit"}', hub.rate_limits.pop(0))
            return
        self.path = self.path.removeprefix(hub.path) if self.path.startswith(f"{hub.path}/") else "/"
        for old, new in hub.moved.items():
            if f"/{old}/" in self.path:
                location = hub.path + self.path.replace(f"/{old}/", f"/{new}/", 1)
                self._send(307, b"Temporary Redirect", {"Location": location})
                return
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        if token and token != hub.token:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif parts[:2] == ["api", "models"]:
            self._api(parts[2:], dict(urllib.parse.parse_qsl(url.query)), token)
        elif parts[:2] == ["api", "resolve-cache"]:
            self._file(parts[3:5], parts[5], parts[6:], token, cached=True)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(parts[:2], parts[3], parts[4:], token)
        else:
            self._refuse(404, "RepoNotFound", "Repository not found")

    def _repository(self, name: list[str], token: str) -> Repository | None:
        found = self.server.hub.repositories.get("/".join(name))
        if found is None or (found.private and not token):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def _api(self, parts: list[str], query: dict[str, str], token: str) -> None:
        repository = self._repository(parts[:2], token)
        if repository is None:
            return
        revision = parts[3] if len(parts) > 3 else "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repository.commits[commit]
        if len(parts) > 2 and parts[2] == "tree":
            self._tree(files, query)
            return
        siblings = [self._sibling(path, data, sizes="blobs" in query) for path, data in files.items()]
        info = {"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings, "gated": repository.gated}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _sibling(self, path: str, data: bytes, *, sizes: bool) -> dict[str, Any]:
        if not sizes or not self.server.hub.with_sizes:
            return {"rfilename": path}
        found: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_oid(data)}
        if len(data) >= LFS_BYTES:
            found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found |= {"xetHash": xet_hash(data)} if self.server.hub.xet else {}
        return found

    def _tree(self, files: Mapping[str, bytes], query: dict[str, str]) -> None:
        items: list[dict[str, Any]] = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for path, data in files.items():
            item: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            if len(data) >= LFS_BYTES:
                item["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                item |= {"xetHash": xet_hash(data)} if self.server.hub.xet else {}
            items.append(item)
        start = int(query.get("cursor", "0"))
        end = start + self.server.hub.page_size
        headers = {"Content-Type": "application/json"}
        if end < len(items):
            path = self.path.split("?")[0]
            headers["Link"] = f'<{self.server.hub.endpoint}{path}?recursive=true&cursor={end}>; rel="next"'
        self._send(200, json.dumps(items[start:end]).encode(), headers)

    def _file(self, name: list[str], revision: str, path: list[str], token: str, *, cached: bool = False) -> None:
        repository = self._repository(name, token)
        if repository is None:
            return
        if repository.gated and not token:
            self._refuse(401, "GatedRepo", "Access to this model is restricted. You must be authenticated.")
            return
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        data = repository.commits[commit].get("/".join(path))
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(data) >= LFS_BYTES:
            headers |= {
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Location": self.server.hub.link(data),
                **(self._xet_headers("/".join(name), commit, data) if self.server.hub.xet else {}),
            }
            self._send(302, b"Found. Redirecting", headers)
        elif not cached:
            quoted = urllib.parse.quote("/".join(path))
            headers["Location"] = f"{self.server.hub.path}/api/resolve-cache/models/{'/'.join(name)}/{commit}/{quoted}"
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{git_oid(data)}"'}
            self._send(307, b"Temporary Redirect", headers)
        else:
            flips = self.server.hub.damaged_in_git.get(path[-1], [])
            self._send_range(data, headers | {"ETag": f'"{git_oid(data)}"'}, flips=flips)

    def _xet_headers(self, repo: str, commit: str, data: bytes) -> dict[str, str]:
        """Returns where a client of Xet asks for its token, and how the file is put together from chunks."""
        hub = self.server.hub
        auth = f"{hub.endpoint}/api/models/{repo}/xet-read-token/{commit}"
        parts = f"{hub.cdn}/v1/reconstructions/{xet_hash(data)}"
        links = f'<{auth}>; rel="xet-auth", <{parts}>; rel="xet-reconstruction-info"'
        return {"X-Xet-Hash": xet_hash(data), "Link": links}

    def _send_content(self) -> None:
        data = self.server.hub.use_link(self.path)
        if data is None:
            self._send(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", {})
            return
        flips = self.server.hub.damaged
        self._send_range(data, {"ETag": '"of-the-other-store"', "Accept-Ranges": "bytes"}, flips=flips)

    def _send_range(self, data: bytes, headers: dict[str, str], *, flips: list[int]) -> None:
        value = self.headers.get("Range", "")
        first, _, last = value.removeprefix("bytes=").partition("-")
        start, end = (int(first), int(last) + 1 if last else len(data)) if value else (0, len(data))
        body = data[start : min(end, len(data))]
        if flips and self.command == "GET" and len(body) > 16:
            at = flips.pop(0) % len(body)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if value:
            headers = headers | {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(data)}"}
        self._send(206 if value else 200, body, headers)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        found = {"X-Error-Message": message, "Content-Type": "application/json", **(headers or {})}
        if code:
            found["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), found)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def xet_hash(data: bytes) -> str:
    """Returns a name for a file's content in Xet storage, where it is a hash of its chunks."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def git_oid(data: bytes) -> str:
    """Returns the ID that Git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
