"""Secrets in the wrong places: no output, report or file of the cache has them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.faults import Fault
from support.models import CONFIG, make_tensors, to_tensors_file
from support.tonnage_cli import CommandResult, run_tonnage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.faulty_server import FaultyServer

PLANTED = {
    "a password": "hunter2-db-password",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2hunter2",
    "a docker config": '{"auths":{"registry.example":{"auth":"hunter2"}}}',
    "a private key": "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
    "a URL whose path is a secret": "http://127.0.0.1:9/services/T00/B00/hunter2",
    "a URL whose path is a secret, with a name": "http://127.0.0.1:9/hunter2/model.tensors?sig=hunter2",
    "a URL with a password": "http://admin:hunter2@127.0.0.1:9/model.tensors",
    "a connection string": "postgres://admin:hunter2@db/model.tensors",
}
VARIABLES = (
    ("AWS_ENDPOINT_URL",),
    ("AWS_ENDPOINT_URL_S3",),
    ("AWS_REGION",),
    ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
"""Variables with the same content in one load. Those of credentials are not parsed, so none ends the load early."""


def load(folder: Path, source: Mapping[str, object], environment: dict[str, str] | None = None) -> CommandResult:
    """Runs a load with all its outputs in a folder."""
    (folder / "termination").touch()
    return run_tonnage(
        *(
            "load",
            "--plan",
            json.dumps({"schema_version": 1, "sources": [source], "limits": {"timeout": 20}}),
            "--cache",
            folder / "cache",
        ),
        *("--report", folder / "report", "--termination-log", folder / "termination"),
        *("--status-file", folder / "status", "--progress", "json"),
        environment=environment,
    )


def assert_hidden(folder: Path, result: CommandResult) -> None:
    assert "hunter2" not in result.output
    for path in folder.rglob("*"):
        assert "hunter2" not in path.name
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("place", ["file", "variable"])
def test_what_is_planted_in_a_list_of_urls_appears_nowhere(tmp_path: Path, planted: str, place: str) -> None:
    listed = tmp_path / "urls"
    listed.write_text(planted)
    folder = tmp_path / "out"
    folder.mkdir()
    source: dict[str, object] = {
        "kind": "http",
        **({"urls_file": str(listed)} if place == "file" else {"urls_env": "X"}),
    }
    result = load(folder, source, {"X": planted})
    assert result.returncode != 0
    assert_hidden(folder, result)


def is_address(variables: tuple[str, ...], planted: str) -> bool:
    """Returns whether the value is the address of a store, which is no secret."""
    return variables[0].startswith("AWS_ENDPOINT_URL") and planted.startswith("http://127")


@pytest.mark.parametrize(
    ("variables", "planted"),
    [
        pytest.param(variables, planted, id=f"{variables[0]}-{kind}")
        for variables in VARIABLES
        for kind, planted in PLANTED.items()
        if not is_address(variables, planted)
    ],
)
def test_what_is_planted_in_variables_appears_nowhere(
    faulty_server: FaultyServer, tmp_path: Path, variables: tuple[str, ...], planted: str
) -> None:
    faulty_server.add_fault(Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>"))
    source = {
        "kind": "s3",
        "bucket": "b",
        "prefix": "m/",
        "endpoint": "" if "ENDPOINT" in variables[0] else faulty_server.url,
    }
    environment = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "x"}
    result = load(tmp_path, source, {**environment, **dict.fromkeys(variables, planted)})
    assert result.returncode != 0
    assert_hidden(tmp_path, result)


def test_a_model_behind_a_secret_path_is_loaded_and_the_path_appears_nowhere(
    faulty_server: FaultyServer, tmp_path: Path
) -> None:
    faulty_server.put("hunter2/v1/model.tensors", to_tensors_file(make_tensors(count=2, rows=8)))
    faulty_server.put("hunter2/v1/config.json", CONFIG)
    urls = " ".join(f"{faulty_server.url}/hunter2/v1/{name}" for name in ("model.tensors", "config.json"))
    result = load(tmp_path, {"kind": "http", "urls_env": "X"}, {"X": urls})
    assert result.report["outcome"] == "loaded", result.output
    assert_hidden(tmp_path, result)
    listed = run_tonnage("ls", "--json", "--cache", tmp_path / "cache")
    assert "hunter2" not in listed.output


@pytest.mark.parametrize("status", [403, 404, 500, 301])
def test_a_server_that_repeats_the_path_is_not_quoted(faulty_server: FaultyServer, tmp_path: Path, status: int) -> None:
    body = b"<html><title>Not Found</title>The requested URL /hunter2/v1/model.tensors was not found.</html>"
    location = {"Location": "/hunter2/v1/other.tensors"} if status == 301 else {}
    faulty_server.add_fault(Fault(status=status, body=body, headers=location))
    urls = f"{faulty_server.url}/hunter2/v1/model.tensors"
    result = load(tmp_path, {"kind": "http", "urls_env": "X"}, {"X": urls})
    assert result.returncode != 0
    assert_hidden(tmp_path, result)
