"""Which device to compute on, chosen by name, and what memory it has free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coarlib.errors import ArgumentError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str = "auto", threads: int | None = None) -> torch.device:
    """Return the torch device called ``name``.

    Parameters
    ----------
    name : str
        ``auto`` (the first accelerator, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    threads : int, optional
        CPU threads that torch may use in this process; unchanged by default. Several workers on
        one machine are fastest with one thread each.

    Raises
    ------
    ArgumentError
        If torch does not know the name, or this machine has no such device.
    """
    import torch

    if threads is not None:
        try:
            torch.set_num_threads(threads)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{threads} threads cannot be set") from error
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ArgumentError(f"device {name!r} cannot be used here: {reason}") from error
    return device


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Multiply float32 as float32, or factors rounded to TF32; then the user's setting returns.

    By default torch rounds in convolutions: to eleven bits instead of twenty-four.
    """
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        kept = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # set by the switches that torch 2.9 has for each operation
        switches: list[Any] = [matmul, *(getattr(cudnn, name) for name in ("conv", "rnn"))]
        precisions = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if tf32 else "ieee"
            yield
        finally:
            for switch, precision in zip(switches, precisions, strict=True):
                switch.fp32_precision = precision
        return
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        cudnn.allow_tf32 = kept[1]


def flushes_denormals() -> bool:
    """Whether this thread takes denormal numbers (float32 below 1e-38) as zeros."""
    import torch

    return not bool(torch.tensor(1e-39).mul(1.0))


@contextmanager
def flushed_denormals(on: bool = True) -> Iterator[None]:
    """Take denormal numbers as zeros, or not; then this thread's setting returns.

    A processor computes with them many times slower, and the probabilities of a confident model
    are full of them. Other threads that torch computes with keep their own setting; threads that
    are begun inside have this one, for good.
    """
    import torch

    before = flushes_denormals()
    torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that a CUDA device, or for any other this machine, has free, in bytes."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass
    try:  # what a container may use
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{what}").read_text()) for what in ("max", "current"))
        found.append(limit - used)
    except (OSError, ValueError):
        pass
    if not found:
        with suppress(ValueError, OSError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(found, default=8 * 2**30))
