"""The doors that COAR's users know, and the set-ups, one folder each."""

from pathlib import Path

from coarlib import commands

# ``python -m estimate.status`` and the like keep working: the commands live in coarlib.commands.
__path__ += [str(room) for room in Path(commands.__file__).parent.iterdir() if room.is_dir()]
