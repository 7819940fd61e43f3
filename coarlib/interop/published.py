"""Published banks of retrained models, from a directory or a URL, checked before they are used.

A bank is a store, or a directory with ``mask.npy`` and ``val_margins.npy`` (what ``coar export_bank
--format trak`` writes). A URL names a tar archive of one, and is fetched once: what lies under its
sha256 in the cache has been checked.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coarlib.errors import ScoringError, StoreError, TornRowError
from coarlib.files import whole_directory, whole_file
from coarlib.interop.banks import completed_beside, read_masks
from coarlib.progress import Progress
from coarlib.scoring.score_files import load_scores
from coarlib.store import Store, take_rows
from coarlib.store.added import store_of_output
from coarlib.store.verify import find_torn

__all__ = ["Bank", "load_bank"]

MASKS, MARGINS = "mask.npy", "val_margins.npy"
_CHUNK = 2**20
_SECONDS = 60


@dataclass(frozen=True)
class Bank:
    """Subsets and the outputs measured on them.

    Attributes
    ----------
    name : str
    masks : bool or 0/1 [M, N]
        True = kept.
    outputs : real [M, T] or [M, R, T]
    """

    name: str
    masks: NDArray[Any]
    outputs: NDArray[Any]


def load_bank(
    source: str | Path,
    sha256: str | None = None,
    cache_dir: str | Path = "out/banks",
    x_name: str | None = None,
    y_name: str | None = None,
) -> Bank:
    """Load a published bank.

    Parameters
    ----------
    source : str or Path
        A directory, a tar archive (``.tar``, ``.tar.gz``, ``.tar.xz``), or the URL of one
        (``https://``, ``http://``, ``file://``).
    sha256 : str, optional
        Of the archive; required for a URL. A directory has none: a store's rows are checked
        against their own checksums.
    cache_dir : str or Path
        Where archives are kept and unpacked.
    x_name, y_name : str, optional
        Arrays of a store; by default its own masks and outputs.

    Raises
    ------
    StoreError
        If there is no such bank, it cannot be fetched, or it is not the one the sha256 names.
    ScoringError
        If masks and outputs do not fit together.
    TornRowError
        If a row of a store does not match its checksum.
    """
    text = str(source)
    is_url = "://" in text
    path = Path(text)
    if path.is_dir():
        if sha256 is not None:
            raise StoreError(f"{path} is a directory; a sha256 is that of an archive")
        return _read(path, path.name, x_name, y_name)
    if not is_url and not path.is_file():
        raise StoreError(f"there is no bank at {path}")
    if is_url and sha256 is None:
        raise StoreError(f"say the sha256 of {text}: what is fetched must be what was published")
    cache = Path(cache_dir)
    digest = (sha256 or _digest(path)).lower()
    unpacked = cache / digest
    if not unpacked.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            archive = _fetched(text, digest, cache) if is_url else path
            if not is_url and _digest(path) != digest:
                raise StoreError(f"{path} is not the archive whose sha256 is {digest}")
            _unpack(archive, unpacked)
        except OSError as error:
            raise StoreError(f"cannot keep {text} in {cache}: {error}") from error
    return _read(_inner(unpacked), text.rstrip("/").rpartition("/")[2], x_name, y_name)


def _fetched(url: str, digest: str, cache: Path) -> Path:
    """Download to a file named by its digest; nothing is left of what is not what it should be."""
    archive = cache / f"{digest}.archive"
    if archive.is_file() and _digest(archive) == digest:
        return archive
    if url.partition("://")[0] not in ("https", "http", "file"):
        raise StoreError(f"{url} is neither https, http nor file")
    sha = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=_SECONDS) as answer,
            whole_file(archive) as file,
            Progress(int(answer.headers.get("Content-Length") or 0), "fetching", "B") as progress,
        ):
            while chunk := answer.read(_CHUNK):
                sha.update(chunk)
                file.write(chunk)
                progress.advance(len(chunk))
            if sha.hexdigest() != digest:
                raise StoreError(
                    f"{url} has sha256 {sha.hexdigest()}, not {digest}: it is not the bank that "
                    "was published, or was damaged on the way"
                )
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise StoreError(f"cannot fetch {url}: {error}") from error
    return archive


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, goal: Path) -> None:
    """Unpack beside ``goal`` and move there in one step; members outside it are refused."""
    try:
        with whole_directory(goal) as building, tarfile.open(archive) as tar:
            tar.extractall(building, filter=_member)
            os.rename(building, goal)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise StoreError(f"{archive} is not a tar archive that can be unpacked: {error}") from error
    except OSError:
        if not goal.is_dir():  # else another process was first
            raise


def _member(member: tarfile.TarInfo, goal: str) -> tarfile.TarInfo:
    """Refuse what would leave ``goal``; permissions are those of any new file there."""
    return tarfile.data_filter(member, goal).replace(mode=None, deep=False)  # type: ignore[arg-type]


def _inner(folder: Path) -> Path:
    """Return the bank's directory in an unpacked archive: its root, or the only one in it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _read(folder: Path, name: str, x_name: str | None, y_name: str | None) -> Bank:
    if (folder / MASKS).is_file() and (folder / MARGINS).is_file():
        bank = Bank(name, read_masks(folder / MASKS), load_scores(folder / MARGINS))
        done = completed_beside(folder / MASKS)
        if done is not None and len(done) == len(bank.masks) == len(bank.outputs):
            bank = Bank(name, bank.masks[done], bank.outputs[done])
    else:
        store = store_of_output(Store.open(folder), y_name)
        rows = store.completed_rows()
        torn = find_torn(store, rows) if store.has_checksums else []
        if torn:
            raise TornRowError(
                f"{len(torn)} rows of the bank {folder} do not match their checksums (the first "
                f"is {torn[0]}); get it again"
            )
        names = store.masks_name(x_name), store.outputs_name(y_name)
        masks, outputs = (take_rows(store.array(key), rows) for key in names)
        bank = Bank(name, masks, outputs)
    if bank.masks.ndim != 2 or len(bank.masks) != len(bank.outputs) or len(bank.masks) < 2:
        raise ScoringError(
            f"the bank {folder} has masks {list(bank.masks.shape)} and outputs "
            f"{list(bank.outputs.shape)}; two subsets at least, as many of each, are needed"
        )
    return bank
