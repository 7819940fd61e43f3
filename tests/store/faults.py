"""Ways to make a real system fail under a store, each for real or skipped with a reason."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest
from paths import ROOT

TASK = ROOT / "tests" / "zoo" / "linear_task.py"
# Fails every Nth positioned write to files under COARLIB_FAIL_UNDER with EIO, half of it written.
EIO_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef ssize_t (*writer)(int, const void *, size_t, off_t);
static int calls;
static ssize_t faulty(const char *name, int fd, const void *data, size_t size, off_t at) {
  writer real = (writer)dlsym(RTLD_NEXT, name);
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length > 0 ? length : 0] = 0;
  if (strstr(path, getenv("COARLIB_FAIL_UNDER")) &&
      __sync_add_and_fetch(&calls, 1) == atoi(getenv("COARLIB_FAIL_AT"))) {
    real(fd, data, size / 2, at);
    errno = EIO;
    return -1;
  }
  return real(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return faulty("pwrite", fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) {
  return faulty("pwrite64", fd, b, n, o);
}
"""


def worker_command(store, *more):
    task = [] if "--expt.task" in more else ["--expt.task", TASK]
    words = ["--expt.base_dir", store.path, *task, "--quiet", *more]
    return [sys.executable, "-m", "estimate.make_dataset", *map(str, words)]


def run_worker(store, *more, **environment):
    return subprocess.run(
        worker_command(store, *more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, **environment},
    )


def start_worker(store, *more):
    return subprocess.Popen(
        worker_command(store, *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("what the test waits for did not happen")
        time.sleep(0.05)


@contextlib.contextmanager
def mounted(place, *options):
    """Mount something at ``place``; skips where this system does not allow it."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *options, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this system does not let us mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def eio_shim(directory):
    """Compile the shim; the path to preload."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to build the failing pwrite with")
    (directory / "eio.c").write_text(EIO_SHIM)
    library = directory / "eio.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, directory / "eio.c", "-ldl"], check=True
    )
    return str(library)


def one_sentence(done):
    """The single line that a failing worker leaves."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    return line
