"""Builds images: with buildah where no registry can be reached, or with Docker or Podman and the official base."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import debian_root
import host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_BASE = "docker.io/library/debian:bookworm-slim"
STAND_IN_LABEL = "dev.tonnage.stand-in-base"
_TAIL = 4000
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
"""Starts a program whose mounts end with it, also if it is interrupted."""


class Engine(Protocol):
    """Builds targets of the Dockerfile and saves them as archives.

    ``base`` is the base image's name. ``stages`` are stages to build first, and to keep with a name.
    """

    base: str
    stages: tuple[str, ...]

    def prepare(self) -> None:
        """Prepares programs, storage and base image.

        Raises:
            MissingRequirement: Something is missing on this machine.
        """

    def build(
        self, target: str, tag: str, source: Path, build_args: Mapping[str, str], secrets: Mapping[str, Path]
    ) -> None:
        """Builds one target of the Dockerfile in ``source``.

        Raises:
            BuildFailed: The build failed.
        """

    def save(self, tag: str, archive: Path) -> str:
        """Writes an image to a ``docker-archive`` and returns its ID, ``sha256:…``."""

    def prune(self) -> None:
        """Removes images that later builds don't need."""


class BuildFailed(Exception):
    """A command failed; the message ends with its output."""


def run_command(command: Sequence[str], *, prefix: Sequence[str] = ()) -> str:
    """Runs a command, which ``prefix`` starts, and returns its standard output, stripped.

    Raises:
        BuildFailed: Its exit code is not 0.
    """
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        printed = (done.stdout + done.stderr)[-_TAIL:]
        raise BuildFailed(f"{command[0]} exited with {done.returncode}:\n{printed}")
    return done.stdout.strip()


def build_options(
    target: str, tag: str, build_args: Mapping[str, str], secrets: Mapping[str, Path], *, base: str
) -> list[str]:
    """Returns the options of a build that all engines share. Proxies are passed by name: values may have passwords."""
    options = [f"--target={target}", f"--tag={tag}", f"--build-arg=BASE={base}"]
    options += [f"--build-arg={name}={value}" for name, value in build_args.items()]
    options += [f"--build-arg={name}" for name in host.proxy_variables(os.environ)]
    options += [f"--secret=id={name},src={path}" for name, path in secrets.items()]
    return options


class Buildah:
    """buildah, with its storage in the cache folder and a base image from Debian packages."""

    stages: tuple[str, ...] = ("operator-packages", "compiler", "nginx")
    """The last stages that don't depend on Tonnage's sources. Their names protect them from pruning."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.base = debian_root.image_name()
        self._global: list[str] = []

    def prepare(self) -> None:
        if os.geteuid() != 0:
            raise host.MissingRequirement("buildah needs root here. Run this as root, or with --engine docker.")
        host.ensure_programs(["buildah", *debian_root.REQUIRED_PROGRAMS])
        self._global = self._storage()
        self._buildah("rm", "--all")  # of builds that were interrupted
        if not self._images(self.base):
            self._make_base()

    def _storage(self) -> list[str]:
        """Returns buildah's options for its storage: overlay, or vfs (which copies files) if that can't be mounted."""
        run_root = Path("/run/tonnage-images") / hashlib.sha256(bytes(self._cache)).hexdigest()[:8]
        wanted = os.environ.get("STORAGE_DRIVER")
        for driver in [wanted] if wanted else ["overlay", "vfs"]:
            options = [f"--root={self._cache}/storage-{driver}", f"--runroot={run_root}-{driver}"]
            options += [f"--storage-driver={driver}"]
            command = [*_OWN_MOUNTS, "buildah", *options, "info"]
            if not subprocess.run(command, capture_output=True, check=False).returncode:
                return options
        raise host.MissingRequirement("buildah can't use overlay or vfs storage here; `buildah info` shows the reason.")

    def _make_base(self) -> None:
        folder = self._cache / "base.part"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            debian_root.build_root(folder / "root.tar")
            (folder / "Dockerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["bash"]\n')
            options = ["--isolation=chroot", "--format=docker", f"--tag={self.base}", f"--label={STAND_IN_LABEL}=true"]
            self._buildah("bud", *options, str(folder))
        finally:
            shutil.rmtree(folder)

    def build(
        self, target: str, tag: str, source: Path, build_args: Mapping[str, str], secrets: Mapping[str, Path]
    ) -> None:
        options = ["--isolation=chroot", "--format=docker", "--layers", "--pull-never"]
        shared = build_options(target, tag, build_args, secrets, base=self.base)
        self._buildah("bud", *options, *shared, str(source))

    def save(self, tag: str, archive: Path) -> str:
        self._buildah("push", "--quiet", tag, f"docker-archive:{archive}:{tag}")
        return "sha256:" + self._buildah("inspect", "--type=image", "--format={{.FromImageID}}", tag)

    def prune(self) -> None:
        for name in self._images("localhost/tonnage-base"):
            if name != self.base:
                self._buildah("rmi", name)
        self._buildah("rmi", "--prune")

    def _images(self, name: str) -> list[str]:
        """Returns the names and tags of images with the prefix ``name``."""
        listed = self._buildah("images", "--format={{.Name}}:{{.Tag}}").splitlines()
        return [each for each in listed if each.startswith(name)]

    def _buildah(self, command: str, *words: str) -> str:
        return run_command(["buildah", *self._global, command, *words], prefix=_OWN_MOUNTS)


class Docker:
    """Docker or Podman, which have the same command line here, with a base image from a registry.

    Args:
        program: ``docker`` or ``podman``.
        base: The base image; without a digest, the current one is used.
    """

    stages: tuple[str, ...] = ()

    def __init__(self, program: str, base: str) -> None:
        self._program = program
        self.base = base

    def prepare(self) -> None:
        if not is_available(self._program):
            raise host.MissingRequirement(f"`{self._program} info` failed. Start {self._program} first.")
        if "@sha256:" not in self.base:
            run_command([self._program, "pull", "--quiet", self.base])
            digest = run_command([self._program, "image", "inspect", "--format={{index .RepoDigests 0}}", self.base])
            self.base = f"{self.base}@{digest.rpartition('@')[2]}"
            host.log(f"base image: {self.base}")

    def build(
        self, target: str, tag: str, source: Path, build_args: Mapping[str, str], secrets: Mapping[str, Path]
    ) -> None:
        name, _, digest = self.base.partition("@")
        options = build_options(target, tag, build_args, secrets, base=self.base)
        options += [f"--label=org.opencontainers.image.base.name={name}"]
        options += [f"--label=org.opencontainers.image.base.digest={digest}"]
        os.environ.setdefault("DOCKER_BUILDKIT", "1")
        run_command([self._program, "build", *options, str(source)])

    def save(self, tag: str, archive: Path) -> str:
        run_command([self._program, "save", "--output", str(archive), tag])
        found = run_command([self._program, "image", "inspect", "--format={{.Id}}", tag])
        return found if found.startswith("sha256:") else f"sha256:{found}"

    def prune(self) -> None:
        """Does nothing: the engine's storage belongs to its user."""


def is_available(program: str) -> bool:
    """Returns whether an engine is installed and running."""
    if not shutil.which(program):
        return False
    return not subprocess.run([program, "info"], capture_output=True, check=False).returncode


def select_engine(name: str, *, base: str | None, cache: Path) -> Engine:
    """Returns the engine with this name; for ``auto`` the first one that is available."""
    if name == "auto":
        candidates = [program for program in ("docker", "podman") if base and is_available(program)]
        name = candidates[0] if candidates else "buildah"
    if name == "buildah":
        return Buildah(cache)
    return Docker(name, base or DEFAULT_BASE)
