"""Libraries for ``LD_PRELOAD``: locks that lock nothing, and a resolver that never answers, as some systems have.

Another one notices that a process asks its libraries to end.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

GRANTS_EVERYTHING = "int flock(int descriptor, int operation) { (void)descriptor; (void)operation; return 0; }\n"
"""Locks nothing, as on NFS without locks and in sandboxes that share a folder."""

LOCKS_FOR_ONE_MACHINE = """\
#include <errno.h>
#include <sys/file.h>
#include <sys/stat.h>

/* Locks among the descriptors of one process, which stands for a machine. */
static struct { int used, descriptor, exclusive; dev_t device; ino_t inode; } held[256];

int flock(int descriptor, int operation) {
    struct stat wanted, other;
    int exclusive = operation & LOCK_EX, slot = -1;
    if (fstat(descriptor, &wanted)) return -1;
    for (int i = 0; i < 256; i++) {
        if (held[i].used && (fstat(held[i].descriptor, &other) || other.st_ino != held[i].inode
                             || other.st_dev != held[i].device || held[i].descriptor == descriptor))
            held[i].used = 0;
        if (!held[i].used) { slot = i; continue; }
        if (!(operation & LOCK_UN) && held[i].inode == wanted.st_ino && held[i].device == wanted.st_dev
            && (exclusive || held[i].exclusive)) { errno = EWOULDBLOCK; return -1; }
    }
    if (operation & LOCK_UN) return 0;
    held[slot].used = 1; held[slot].descriptor = descriptor; held[slot].exclusive = exclusive;
    held[slot].device = wanted.st_dev; held[slot].inode = wanted.st_ino;
    return 0;
}
"""
"""Locks within a process, and nothing between processes: as GPFS and other file systems between machines."""

RESOLVES_NOTHING = """\
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    int asked = open(getenv("LC_ASKED"), O_WRONLY);
    (void)node; (void)service; (void)hints; (void)result;
    (void)!write(asked, "\\n", 1);
    for (;;) pause();
}
"""
"""Writes a line to the file in ``LC_ASKED`` and never answers, as with a name server that drops packets. A worker
process gets only variables of some names, among them those that begin with ``LC_``."""

REFUSES_TO_END = """\
#include <unistd.h>

__attribute__((destructor)) static void end(void) { _exit(99); }
"""
"""Ends a process with 99 if its libraries are asked to end, as OpenSSL is, whose memory its threads may still use."""


def build_shim(source: str, folder: Path, *, compiler: str) -> Path:
    """Compiles a library and returns its path."""
    (folder / "shim.c").write_text(source)
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "shim.c"], check=True)
    return library
