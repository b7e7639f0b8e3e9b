"""Unpacks built images, and runs containers of them with runc as containerd would. Needs root."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_NUMBERS = itertools.count()
_TIMEOUT = 30.0
_NAMESPACES = ("pid", "ipc", "uts", "mount")


@dataclass(frozen=True)
class Image:
    """An unpacked image. ``layer_sizes``: bytes of the files in each layer, the base layer first."""

    name: str
    config: dict[str, Any]
    root: Path
    layer_sizes: tuple[int, ...]

    @property
    def command(self) -> list[str]:
        """The command of a container that sets none."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    def python_packages(self) -> dict[str, str]:
        """Returns the versions of installed distributions by normalized name."""
        found = {}
        for folder in self.root.glob("opt/tonnage/lib/python3.*/site-packages/*.dist-info"):
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            found[name.lower().replace("_", "-").replace(".", "-")] = version
        return found


def unpack(archive: Path, folder: Path) -> Image:
    """Unpacks a ``docker-archive`` with one image, and applies its layers in order, whiteouts included."""
    (folder / "archive").mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder / "archive")], check=True)
    (manifest,) = json.loads((folder / "archive" / "manifest.json").read_text())
    config = json.loads((folder / "archive" / manifest["Config"]).read_text())
    root = folder / "root"
    root.mkdir()
    sizes = []
    for name in manifest["Layers"]:
        layer = folder / "archive" / name
        subprocess.run(["tar", "--numeric-owner", "-xpf", str(layer), "-C", str(root)], check=True)
        for whiteout in root.rglob(".wh.*"):
            _remove(whiteout.with_name(whiteout.name.removeprefix(".wh.")))
            whiteout.unlink()
        with tarfile.open(layer) as members:
            sizes.append(sum(member.size for member in members))
    shutil.rmtree(folder / "archive")
    return Image(manifest["RepoTags"][0], config["config"], root, tuple(sizes))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass
class Container:
    """A running container."""

    name: str
    process: subprocess.Popen[str]
    bundle: Path
    _runc: list[str] = field(default_factory=list)

    def wait_until_running(self) -> None:
        """Waits until runc has started the container's first process.

        Raises:
            RuntimeError: The container exited before.
        """
        while self.process.poll() is None:
            result = subprocess.run([*self._runc, "state", self.name], capture_output=True, text=True, check=False)
            if result.returncode == 0 and json.loads(result.stdout)["status"] == "running":
                return
        raise RuntimeError(f"The container exited: {self.wait()}")

    def kill(self, signum: signal.Signals) -> None:
        """Sends a signal to the container's first process."""
        subprocess.run([*self._runc, "kill", self.name, str(int(signum))], check=True, capture_output=True)

    def exec(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs another command in the container."""
        command = [*self._runc, "exec", self.name, *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)

    def wait(self, timeout: float = _TIMEOUT) -> tuple[int, str, str]:
        """Waits until the container exits; returns exit code, standard output and standard error.

        Raises:
            TimeoutExpired: It still runs after ``timeout`` seconds.
        """
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@contextlib.contextmanager
def start_container(
    image: Image,
    folder: Path,
    *,
    command: Sequence[str] = (),
    user: int | None = None,
    environment: Mapping[str, str] | None = None,
    mounts: Mapping[str, Path] | None = None,
    isolated_network: bool = False,
) -> Iterator[Container]:
    """Starts a container with the restrictions of Tonnage's pods: read-only root, no capabilities, no new privileges.

    Args:
        image: The unpacked image.
        folder: Private folder for runc's files.
        command: Replaces the image's command.
        user: UID and GID; None: the image's.
        environment: Added to the image's variables.
        mounts: Folders of the host by their paths in the container, writable.
        isolated_network: A network namespace with loopback only, instead of the host's.
    """
    bundle = folder / f"bundle-{next(_NUMBERS)}"
    bundle.mkdir()
    name = f"tonnage-test-{os.getpid()}-{bundle.name}"
    uid = int(image.config["User"].split(":")[0]) if user is None else user
    variables = [*image.config["Env"], *(f"{name}={value}" for name, value in (environment or {}).items())]
    namespaces = (*_NAMESPACES, "network") if isolated_network else _NAMESPACES
    specification = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": list(command) or image.command,
            "env": variables,
            "cwd": image.config.get("WorkingDir") or "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.root), "readonly": True},
        "mounts": [*_system_mounts(), *(_bind(where, what) for where, what in (mounts or {}).items())],
        "linux": {"namespaces": [{"type": kind} for kind in namespaces], "maskedPaths": ["/proc/kcore"]},
    }
    (bundle / "config.json").write_text(json.dumps(specification))
    runc = ["runc", "--root", str(folder / "runc")]
    process = subprocess.Popen(
        [*runc, "run", "--bundle", str(bundle), name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Container(name, process, bundle, runc)
        finally:
            subprocess.run([*runc, "delete", "--force", name], check=False, capture_output=True)
            process.kill()


def _bind(destination: str, source: Path) -> dict[str, Any]:
    return {"destination": destination, "source": str(source), "type": "bind", "options": ["rbind", "rw"]}


def _system_mounts() -> list[dict[str, Any]]:
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
    ]


def run_container(image: Image, folder: Path, *args: str, **settings: Any) -> tuple[int, str, str]:
    """Runs the image's entrypoint with ``args`` until it exits; see ``start_container`` and ``Container.wait``."""
    with start_container(image, folder, command=[*image.config["Entrypoint"], *args], **settings) as container:
        return container.wait()
