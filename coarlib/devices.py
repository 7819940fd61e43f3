"""Which device to compute on, chosen by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        torch.set_num_threads(threads)
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
