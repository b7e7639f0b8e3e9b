"""Builds a Debian root file system that replaces the base image where no registry can be reached.

Like the official slim image it has the required packages and apt, and no documentation except copyrights. Images that
are built on it are for tests only and have a label for that.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import host

if TYPE_CHECKING:
    from pathlib import Path

SUITE = "bookworm"
REQUIRED_PROGRAMS = ("mmdebstrap",)
"""The programs that ``build_root`` runs."""
_ARCHIVE = re.compile(r"^(bookworm|bookworm-updates|bookworm-security) main (https?://\S+)$")
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def image_name() -> str:
    """Returns the image's name, which changes each month, so that security fixes are installed."""
    return f"localhost/tonnage-base:{SUITE}-{time.strftime('%Y-%m', time.gmtime())}"


def build_root(archive: Path) -> None:
    """Writes the root file system to ``archive``, a tar file.

    Raises:
        MissingRequirement: mmdebstrap failed.
    """
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=tar"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command += [f"--aptopt={line}" for line in host.apt_settings()]
    # Remove this machine's settings, which are only for the build; the Dockerfile gets them as a secret.
    command += ["--customize-hook=rm -f $1/etc/apt/apt.conf.d/99mmdebstrap $1/etc/resolv.conf $1/etc/hostname"]
    host.log(f"building a base image from packages of Debian {SUITE} (half a minute)")
    done = subprocess.run([*command, SUITE, str(archive), "-"], input=apt_sources(), text=True, check=False)
    if done.returncode:
        raise host.MissingRequirement("mmdebstrap failed; see its messages above.")


def apt_sources() -> str:
    """Returns lines for apt: this machine's mirrors of the suite, otherwise Debian's."""
    found = dict.fromkeys(_configured_mirrors())
    if SUITE not in {suite for suite, _ in found}:
        found = dict.fromkeys(
            [
                (SUITE, "http://deb.debian.org/debian"),
                (f"{SUITE}-updates", "http://deb.debian.org/debian"),
                (f"{SUITE}-security", "http://deb.debian.org/debian-security"),
            ]
        )
    return "".join(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite, mirror in found)


def _configured_mirrors() -> list[tuple[str, str]]:
    if not shutil.which("apt-get"):
        return []
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    matches = [_ARCHIVE.match(line) for line in done.stdout.splitlines()]
    return [(match[1], match[2]) for match in matches if match]
