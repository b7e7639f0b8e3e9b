#!/usr/bin/env python3
"""Builds the images of Tonnage as archives in a cache folder, if their inputs have changed.

    hack/images/build.py                          print JSON: names, archives, IDs
    hack/images/build.py --format lines           print one line per image: target, name, archive
    hack/images/build.py --engine docker          build with Docker and the official base image

An archive is a tar file for `ctr images import` or `docker load`. The name of its folder is a hash of all inputs: a
second call returns immediately, and a change of Tonnage's sources builds only the last layer again.
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

TARGETS = ("loader", "peer", "operator")
_KEPT_BUILDS = 3
_KEPT_SECONDS = 600.0
"""A build that was returned within this time may be in use and is not pruned."""

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # removes temporary files
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
    parser = argparse.ArgumentParser(description="Builds the images of Tonnage if their inputs have changed.")
    parser.add_argument(
        "--engine",
        choices=("auto", "buildah", "docker", "podman"),
        default="auto",
        help="auto: docker or podman if --base is given and one is running, otherwise buildah",
    )
    parser.add_argument("--base", help="base image for docker and podman; without a digest, the current one is used")
    parser.add_argument("--prefix", default="localhost/", help="prefix of image names, such as registry.example/team/")
    parser.add_argument("--format", choices=("json", "lines"), default="json")
    return parser


def get_or_build(options: argparse.Namespace, cache: Path) -> Result:
    """Returns the images for these options; builds them if their inputs have changed.

    Raises:
        MissingRequirement: This machine can't build them.
        BuildFailed: The build failed.
    """
    settings = (options.engine, options.base or debian_root.image_name(), options.prefix)
    if result := _cached_result(cache / cache_key.cache_key(*settings)):
        return result
    cache.mkdir(parents=True, exist_ok=True)
    with _build_lock(cache), tempfile.TemporaryDirectory(prefix="tonnage-build-") as private:
        source = Path(private, "source")
        cache_key.copy_inputs(source)
        folder = cache / cache_key.cache_key(*settings, root=source)
        if result := _cached_result(folder):  # built while this process waited for the lock
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
    """Allows one build at a time."""
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.log("another build is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(engine: engines.Engine, prefix: str, source: Path, folder: Path) -> Result:
    """Builds both images from ``source`` and writes their archives to ``folder``."""
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
    """Removes builds that were not used recently, and the remains of interrupted builds."""
    for staging in cache.glob(".*.part"):
        shutil.rmtree(staging)
    builds = sorted(cache.glob("*/images.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in builds[_KEPT_BUILDS:]:
        if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(file.parent)


if __name__ == "__main__":
    sys.exit(main())
