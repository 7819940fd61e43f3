"""A result directory: tensors in ``datamodels.pt``, arrays in .npz files, documents in JSON.

Everything appears whole, and ``datamodels.pt`` last: a directory that holds it is complete.
``digests.json`` holds a digest of each tensor and document; .npz and .pt files carry their own
checksums besides, which their loaders compare. Documents say by their format version that there are
digests, so that a result that lost them is damaged; what other programs and coarlib 0.1 wrote has
none, and is read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from coarlib.errors import CoarlibError, RegressionError
from coarlib.files import whole_file
from coarlib.loading import load_json, load_npz, load_pt
from coarlib.store.layout import SPEC_FILE
from coarlib.store.settle import digest_of, read_sealed_json, sealed_json

DATAMODELS = "datamodels.pt"
DIGESTS = "digests.json"
FORMAT, FORMAT_VERSION = "format_version", 2
ROWS = "rows.npz"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ResultFiles:
    """The content of a result directory.

    Attributes
    ----------
    tensors : dict of name to array
        Saved as float32, in the file that upstream reads.
    arrays : dict of file name to arrays
        Files without arrays are not written, and read as {}.
    documents : dict of file name to JSON values
        NaN and infinity are saved as null; documents that are None are not written.
    """

    tensors: Arrays
    arrays: dict[str, Arrays] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the directory.

        Raises
        ------
        RegressionError
            If ``path`` already holds a result, or a store. Nothing is overwritten.
        """
        if (path / SPEC_FILE).exists():
            raise RegressionError(
                f"{path} is a store, which has files of these names; give another"
            )
        if path.exists() and (not path.is_dir() or (path / DATAMODELS).exists()):
            raise RegressionError(
                f"{path} already holds a result; give another directory or move it away"
            )
        path.mkdir(parents=True, exist_ok=True)
        for name, arrays in self.arrays.items():
            if arrays:
                with whole_file(path / name) as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
        for name, content in self.documents.items():
            if content is not None:
                with whole_file(path / name) as file:
                    file.write(json.dumps(_marked(content), indent=1, allow_nan=False).encode())
        with whole_file(path / DIGESTS) as file:
            file.write(sealed_json(self.digests()))
        found = {name: torch.from_numpy(_float32(value)) for name, value in self.tensors.items()}
        with whole_file(path / DATAMODELS) as file:
            torch.save(found, file)

    @classmethod
    def load(
        cls, path: Path, arrays: Sequence[str], documents: Sequence[str], mmap: bool
    ) -> ResultFiles:
        """Read a directory.

        Parameters
        ----------
        path : Path
        arrays, documents : sequence of str
            The files to read; what is missing is {} or None.
        mmap : bool
            Map the tensors instead of reading them.

        Raises
        ------
        RegressionError
            If the directory holds no complete result, or a file is damaged.
        """
        if not (path / DATAMODELS).is_file():
            raise RegressionError(f"{path} holds no finished result ({DATAMODELS} is missing)")
        try:
            saved = load_pt(path / DATAMODELS, RegressionError, mmap=mmap)
            found = cls(
                {name: tensor.numpy() for name, tensor in saved.items()},
                {name: _read(load_npz, path / name) or {} for name in arrays},
                {name: _read(load_json, path / name) for name in documents},
            )
            versions = [_unmarked(content) for content in found.documents.values()]
            digests = read_sealed_json(path / DIGESTS)
        except (AttributeError, TypeError, RuntimeError, CoarlibError) as error:
            raise RegressionError(f"{path} is damaged or not a result: {error}") from error
        if digests is None and (
            max(versions) >= FORMAT_VERSION or (any(found.arrays.values()) and not any(versions))
        ):
            raise RegressionError(
                f"{path} is damaged: {DIGESTS}, or the documents beside it, are gone; put them "
                "back, or fit again"
            )
        if digests is not None:
            wrong = _different(digests, found.digests(), {*arrays, *documents})
            if wrong is not None:
                raise RegressionError(
                    f"{path} is damaged or was changed: {wrong} does not match its digest in "
                    f"{DIGESTS}, or is gone; put it back, or fit again"
                )
        return found

    def digests(self) -> dict[str, str]:
        """Digest each tensor, file of arrays and document as it is kept."""
        tensors = {
            f"{DATAMODELS} {name}": xxhash.xxh3_64_hexdigest(_float32(value).reshape(-1).data)
            for name, value in self.tensors.items()
        }
        arrays = {
            name: digest_of({k: _digest(np.asarray(v)) for k, v in content.items()})
            for name, content in self.arrays.items()
            if content
        }
        documents = {
            name: digest_of(json.loads(json.dumps(_finite(content))))
            for name, content in self.documents.items()
            if content is not None
        }
        return tensors | arrays | documents


def _marked(content: Any) -> Any:
    """Return a document as it is saved: objects say that there are digests."""
    content = _finite(content)
    return {**content, FORMAT: FORMAT_VERSION} if isinstance(content, dict) else content


def _unmarked(content: Any) -> int:
    """Take the mark from a document; returns its version, 1 without one, 0 of no document."""
    if not isinstance(content, dict):
        return int(content is not None)
    version = content.pop(FORMAT, 1)
    return version if type(version) is int else FORMAT_VERSION


def fitted_masks(path: str | Path) -> NDArray[np.uint64] | None:
    """Digests of the masks that scores were fitted on; None where nothing at ``path`` says so.

    Parameters
    ----------
    path : str or Path
        A result directory, or its ``datamodels.pt``; anything else has no such rows.

    Raises
    ------
    RegressionError
        If the result is damaged.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == DATAMODELS else folder
    if not (folder / DATAMODELS).is_file():
        return None
    return ResultFiles.load(folder, (ROWS,), (), mmap=True).arrays[ROWS].get("fitted")


def _digest(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape} {xxhash.xxh3_64_hexdigest(array.tobytes())}"


def _read(load: Callable[..., Any], path: Path) -> Any:
    return load(path, RegressionError) if path.is_file() else None


def _different(
    kept: Mapping[str, str], found: Mapping[str, str], wanted: Collection[str]
) -> str | None:
    """Name what does not match, or is gone; files that were not wanted are not compared.

    Digests of files of arrays are missing in results of the first versions that kept digests.
    """
    gone = (name for name in kept if name not in found and name in wanted)
    changed = (
        name
        for name in found
        if kept.get(name) != found[name] and (name in kept or not name.endswith(".npz"))
    )
    return next(changed, next(gone, None))


def _float32(value: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(value, np.float32)


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinity) by null, and numpy scalars by numbers."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
