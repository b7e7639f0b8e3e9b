"""Which boot of the machine this is."""

from __future__ import annotations

from tonnage.cache.procfs import PROC


def boot_id() -> str:
    """Returns the kernel's random name of this boot, or an empty string where procfs doesn't say.

    Memory doesn't outlive a boot, and neither does what was written to a disk but not synced.
    """
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
