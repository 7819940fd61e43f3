"""Which process something is, so that others on the same system can tell that it has died."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from coarlib.files import this_system

ENDED = "ended"


def process_identity(pid: int) -> dict[str, object]:
    """Say which process ``pid`` is: its system (boot and process namespace) and start time.

    ``system`` and ``started`` are None where they cannot be known (no /proc, or a hidden process).
    """
    found: dict[str, object] = {"pid": pid, "system": this_system(), "started": None}
    with suppress(OSError, IndexError):
        # Field 22 of stat, counted after the name in parentheses, which may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found["started"] = ENDED if fields[0] in "ZX" else fields[19]
    return found


def has_died(identity: object) -> bool:
    """Whether the process of a recorded identity ran on this very system and is gone.

    False wherever that cannot be told: another machine, another container, damaged content.
    """
    if not isinstance(identity, dict):
        return False
    pid, system = identity.get("pid"), identity.get("system")
    if not isinstance(pid, int) or pid <= 0 or system is None:
        return False
    if this_system() != system:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # another user's process: alive
    started = process_identity(pid)["started"]
    return started is not None and started != identity.get("started")
