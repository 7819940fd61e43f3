"""Seeing what other machines wrote: dropping cached pages where they may be stale.

A network-file-system client shows rows of other nodes as zeros for minutes unless it is told to
forget its cached pages. On a local disk the cache *is* the truth, and dropping it would only make
everybody read the disk again.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

# File systems that only one kernel writes; anything else, and anything unknown, may be shared.
LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "ramfs", "overlay"}
)


def drop_cached_pages(descriptor: int) -> None:
    """Forget cached pages of an open file that other machines may have changed since."""
    if hasattr(os, "posix_fadvise") and not is_local(descriptor):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def is_local(descriptor: int) -> bool:
    """Whether only this machine's kernel can change the open file."""
    return file_system_of(os.fstat(descriptor).st_dev) in LOCAL_FILE_SYSTEMS


@cache
def file_system_of(device: int) -> str | None:
    """Return the type of the file system on ``device`` (``st_dev``); None where unknown."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return None
