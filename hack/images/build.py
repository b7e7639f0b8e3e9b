#!/usr/bin/env python3
"""Builds the images of Tonnage into archives outside of the clone, unless they are there already.

    hack/images/build.py                          JSON: names, archives, IDs
    hack/images/build.py --format lines           one line an image: its target, its name, its archive
    hack/images/build.py --engine docker          with Docker and the real base image

An archive is a tar file for `ctr images import` or `docker load`. All that the images are made of is in the name of the
archives' folder, so a second call takes a moment, and an edit of Tonnage's sources builds just the last layer anew.
See docs/contributing/images.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cache_key
import debian_root
import engines
import host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TARGETS = ("loader", "operator")
_KEPT_BUILDS = 3
_KEPT_SECONDS = 600.0
"""A build that somebody asked for in this time may be being read, and stays."""

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files go
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tonnage" / "images"
    try:
        result = get_or_build(options, cache)
    except host.MissingRequirement as error:
        host.log(str(error))
        return host.EXIT_MISSING_REQUIREMENT
    except engines.BuildFailed as error:
        host.log(str(error))
        return 1
    if options.format == "json":
        print(json.dumps(result, indent=2))
    else:
        for target, image in result["images"].items():
            print(target, image["name"], image["archive"])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Builds the images of Tonnage, unless they are there already.")
    parser.add_argument(
        "--engine",
        choices=("auto", "buildah", "docker", "podman"),
        default="auto",
        help="what builds; auto: docker or podman where --base is given and they answer, else buildah",
    )
    parser.add_argument("--base", help="base image for docker and podman; without a digest, that of today is used")
    parser.add_argument("--prefix", default="", help="what image names begin with, such as registry.example/team/")
    parser.add_argument("--format", choices=("json", "lines"), default="json")
    return parser


def get_or_build(options: argparse.Namespace, cache: Path) -> Result:
    """Returns the images for these options, built now or before.

    Raises:
        Lacking: They can't be built on this machine.
        BuildFailed: They can't be built at all.
    """
    settings = (options.engine, options.base or debian_root.image_name(), options.prefix)
    if result := _cached_result(cache / cache_key.cache_key(*settings)):
        return result
    cache.mkdir(parents=True, exist_ok=True)
    with _build_lock(cache), tempfile.TemporaryDirectory(prefix="tonnage-build-") as private:
        source = Path(private, "source")
        cache_key.copy_inputs(source)
        folder = cache / cache_key.cache_key(*settings, root=source)
        if result := _cached_result(folder):  # built by whom this one waited for
            return result
        engine = engines.select_engine(options.engine, base=options.base, cache=cache)
        engine.prepare()
        result = _build(engine, options.prefix, source, folder)
        engine.prune()
        _prune_builds(cache)
    return result


def _cached_result(folder: Path) -> Result | None:
    try:
        result: Result = json.loads((folder / "images.json").read_text())
        os.utime(folder / "images.json")
    except FileNotFoundError:
        return None
    return result


@contextlib.contextmanager
def _build_lock(cache: Path) -> Iterator[None]:
    """Lets one build run at a time."""
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.log("another build is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(engine: engines.Engine, prefix: str, source: Path, folder: Path) -> Result:
    """Builds both images of the sources in ``source`` and puts their archives into ``folder``."""
    version = cache_key.version(source)
    build_args = {"VERSION": version, "REVISION": cache_key.revision()}
    secrets = host.build_secrets(source.parent)
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    images: dict[str, dict[str, str]] = {}
    started = time.monotonic()
    for target in (*engine.stages, *TARGETS):
        host.log(f"building {target}")
        name = f"{prefix}tonnage-{target}:{version}"
        engine.build(target, name, source, build_args, secrets)
        if target in TARGETS:
            image_id = engine.save(name, staging / f"{target}.tar")
            images[target] = {"name": name, "archive": str(folder / f"{target}.tar"), "id": image_id}
    host.log(f"built in {time.monotonic() - started:.0f} s")
    result = {"version": version, "base": engine.base, "images": images}
    (staging / "images.json").write_text(json.dumps(result))
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return result


def _prune_builds(cache: Path) -> None:
    """Removes builds that nobody asked for lately, and what interrupted ones left."""
    for staging in cache.glob(".*.part"):
        shutil.rmtree(staging)
    builds = sorted(cache.glob("*/images.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in builds[_KEPT_BUILDS:]:
        if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(file.parent)


if __name__ == "__main__":
    sys.exit(main())
