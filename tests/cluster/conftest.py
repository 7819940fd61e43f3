"""A real SLURM on this machine for the tests that need one.

Where it cannot be had the tests skip, unless COARLIB_REQUIRE_SLURM=1 (as in CI) says that this is
a failure.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "slurm_single_machine.sh"
REQUIRED = os.environ.get("COARLIB_REQUIRE_SLURM") == "1"


class Slurm:
    """A running SLURM; commands as a user types them."""

    def __init__(self, directory):
        self.directory = directory
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}

    def __call__(self, *words, check=True):
        result = subprocess.run(
            list(map(str, words)),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=self.environment,
            cwd=ROOT,
        )
        assert not check or result.returncode == 0, f"{words}: {result.stderr}"
        return result.stdout.strip()

    def states(self, job):
        """{array index: (state, node)} of a job's tasks."""
        lines = self("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K|%T|%N").splitlines()
        return {line.split("|")[0]: tuple(line.split("|")[1:]) for line in lines}

    def set_right(self):
        """Do what an administrator does: nodes drained for a doubled job serve again, and tasks
        held because their launch failed are released.

        SLURM may refuse while it is changing a state itself; who polls tries again.
        """
        nodes = self("sinfo", "-h", "-N", "-o", "%N|%T|%E").splitlines()
        for line in set(nodes):  # a node is listed once a partition
            node, state, reason = line.split("|", 2)
            if state.startswith("drain") and "Duplicate jobid" in reason:
                self("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        for line in self("squeue", "-h", "-r", "-t", "PD", "-o", "%F|%K|%r").splitlines():
            job, task, reason = line.split("|", 2)
            if "launch failed" in reason:
                name = job if task == "N/A" else f"{job}_{task}"
                self("scontrol", "release", name, check=False)

    def daemon(self, name):
        """The process of slurmd NAME."""
        return int((self.directory / f"slurmd.{name}.pid").read_text())

    def state(self):
        """The queue, the nodes and the controller's last lines, for a test that fails."""
        queue = self("squeue", "-t", "all", "-r", "-o", "%F|%K|%j|%T|%r|%M|%N|%S")
        log = (self.directory / "slurmctld.log").read_text().splitlines()[-80:]
        return "\n".join([queue, self("sinfo", "-N", "-l"), *log])

    def wait(self, reached, seconds, what):
        """Poll until ``reached()`` is true."""
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                pytest.fail(f"{what} did not happen within {seconds} s\n{self.state()}")
            time.sleep(0.3)


@pytest.fixture(scope="session")
def slurm():
    """Start a real SLURM, once for all tests; stopped at the end."""
    reason = None
    if os.geteuid() != 0:
        reason = "the daemons need root"
    elif not REQUIRED and shutil.which("slurmctld") is None:
        reason = "slurmctld is not installed (tests/slurm_single_machine.sh install)"
    if reason is not None:
        give_up(reason)
    directory = Path(tempfile.mkdtemp(prefix="coarlib-slurm-"))
    directory.chmod(0o755)  # munged runs as its own user
    try:
        started = subprocess.run(
            [SCRIPT, "up", directory], capture_output=True, text=True, check=False, timeout=240
        )
        if started.returncode:
            give_up(f"SLURM does not start: {started.stderr[-2000:]}")
        yield Slurm(directory)
    finally:
        subprocess.run([SCRIPT, "down", directory], check=False, timeout=60, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)


def give_up(reason):
    """Skip on a laptop, fail in CI."""
    if REQUIRED:
        pytest.fail(f"COARLIB_REQUIRE_SLURM=1 but {reason}")
    pytest.skip(f"no SLURM here: {reason}")


@pytest.fixture
def coar(command, slurm):
    """Run ``coar COMMAND …`` against the test SLURM; fails the test if the command fails."""
    slurm.set_right()

    def run(name, *args):
        result = command(f"estimate.{name}", *args, env=slurm.environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture
def project_root():
    """The root of the checkout."""
    return ROOT
