"""Creates the keys, tokens, certificates and kubeconfigs of a cluster."""

from __future__ import annotations

import json
import secrets
import subprocess
from typing import TYPE_CHECKING

from local_cluster.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ADMIN = "admin"
_DAYS = "3650"

User = tuple[str, tuple[str, ...]]
"""A user's name and groups."""


def make_tokens(users: Mapping[str, User], file: Path) -> dict[str, str]:
    """Writes the API server's static token file, and returns a new token for each key of ``users``."""
    tokens = {key: secrets.token_hex(24) for key in users}
    lines = [f'{tokens[key]},{name},{key},"{",".join(groups)}"\n' for key, (name, groups) in users.items()]
    write_private(file, "".join(lines))
    return tokens


def write_kubeconfig(file: Path, *, url: str, ca_file: Path, token: str, name: str = "tonnage") -> None:
    """Writes a kubeconfig for the API server at ``url`` with a token, as JSON, which is valid YAML."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    write_private(file, json.dumps(config, indent=1))


def make_service_account_key(file: Path) -> None:
    """Creates the key that signs service account tokens."""
    _openssl("genrsa", "-out", str(file), "2048")
    file.chmod(0o600)


def make_client_certificate(certificate: Path, key: Path, *, name: str, groups: Sequence[str]) -> None:
    """Creates a self-signed client certificate. Trusting it as a CA admits only this client."""
    subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
    made = ["-keyout", str(key), "-out", str(certificate)]
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", _DAYS, "-subj", subject, *made)
    key.chmod(0o600)


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    file.touch(mode=0o600)
    file.write_text(text)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
