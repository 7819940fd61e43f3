"""Moments: all that the solvers need to know of the rows, collected in one pass.

``n, X'X, X'Y, ΣY, ΣY²`` are sums over rows, so folds, row ranges, files and machines each
contribute a summand: ``a + b`` joins, ``total - fold`` leaves out. X'X is counted exactly in
integers. Outputs enter as ``Y - offset``, with a constant per target near its mean: products are
formed in float32 blocks, added up in float64, and lose nothing where outputs are large against
their spread (one float32 pass over outputs with mean 300 is wrong by a fifth of the sampling
error). Where rows are cut into shards, products in float64 make the sum the same however they are
cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib.errors import RegressionError
from coarlib.masks.digests import joined_digests, mask_digests
from coarlib.progress import Progress
from coarlib.regression.moments.counts import PairCounter, column_sums, int8_pairs
from coarlib.regression.moments.products import add_sparse_products, is_small, pays
from coarlib.regression.rows import ArrayRows, RowSource
from coarlib.regression.rows.blocks import BLOCK_BYTES, read_blocks

__all__ = ["Accumulator", "Moments"]

NO_ROWS = "nothing to fit"
# A variance below this share of the mean square is rounding: the target never varies.
CONSTANT_SHARE = 1e-10


@dataclass(frozen=True)
class Moments:
    """Sums over n rows of masks x (bool [N]) and outputs y (real [T]).

    Attributes
    ----------
    num_rows, num_excluded : int
        Rows that were summed, and rows left out because an output was NaN or infinite.
    kept : int64 [N]
        How many rows kept each feature.
    pairs : int32 [N, N] or None
        Exact X'X, its diagonal being ``kept``; None where only the dual form is wanted, which
        needs no N × N matrix.
    offset : float64 [T]
        The constant subtracted from the outputs.
    cross : float64 [N, T]
        X'(Y - offset).
    total, square : float64 [T]
        Σ(y - offset) and Σ(y - offset)².
    digests : uint64 [n]
        Which masks are in the sum, ascending (see :func:`~coarlib.masks.digests.mask_digests`).
    """

    num_rows: int
    num_excluded: int
    kept: NDArray[np.int64]
    pairs: NDArray[np.int32] | None
    offset: NDArray[np.float64]
    cross: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]
    digests: NDArray[np.uint64]

    @classmethod
    def from_arrays(cls, masks: NDArray[Any], outputs: NDArray[Any], **options: Any) -> Moments:
        """Sum rows in memory: masks [K, N] and outputs [K, T]; options as :meth:`from_rows`."""
        return cls.from_rows(ArrayRows(masks, outputs), **options)

    @classmethod
    def from_rows(
        cls,
        source: RowSource,
        positions: NDArray[np.int64] | None = None,
        *,
        device: torch.device | str = "cpu",
        nonfinite: str = "exclude",
        with_pairs: bool = True,
        dtype: torch.dtype | None = None,
        block_bytes: int = BLOCK_BYTES,
        quiet: bool = True,
    ) -> Moments:
        """Sum the rows of a source in one streamed pass.

        Parameters
        ----------
        source : RowSource
        positions : int64 [K], optional
            Ascending positions in the source; all rows by default.
        device : torch.device or str
            Where products are formed.
        nonfinite : str
            ``"exclude"`` counts rows with a NaN or infinite output and leaves them out;
            ``"refuse"`` makes the first one an error.
        with_pairs : bool
            Count X'X; without it only the dual form can be solved.
        dtype : torch.dtype, optional
            In which X'(Y - offset) of a block is formed, ``torch.float32`` or ``torch.float64``
            (twice the time; moments of shards then add up to those of one pass to 1e-12); by
            default float64 only for outputs in float64.
        block_bytes : int
            Memory for one block of rows.
        quiet : bool
            Show no progress.

        Raises
        ------
        RegressionError
            For non-finite outputs where refused, or where no row is left.
        """
        shape = source.num_features, source.num_targets
        if dtype is None:
            wide = source.output_dtype == np.float64
            dtype = torch.float64 if wide else torch.float32
        count = _count(source, positions)
        options: dict[str, Any] = {"dtype": dtype, "expected_rows": count}
        sums = Accumulator(*shape, device, nonfinite, with_pairs, **options)
        with Progress(count, "moments", quiet=quiet) as progress:
            for block, masks, outputs in read_blocks(source, positions, block_bytes):
                sums.add(masks, outputs)
                progress.advance(len(block))
        return sums.moments()

    @property
    def num_features(self) -> int:
        """Number of features N."""
        return len(self.kept)

    @property
    def num_targets(self) -> int:
        """Number of targets T."""
        return len(self.offset)

    @property
    def mean_mask(self) -> NDArray[np.float64]:
        """Share of rows that kept each feature, float64 [N]."""
        return self.kept / self.num_rows

    @property
    def mean_output(self) -> NDArray[np.float64]:
        """Mean of each target, float64 [T]."""
        return self.offset + self.total / self.num_rows

    @property
    def output_variance(self) -> NDArray[np.float64]:
        """Variance (divisor n) of each target, float64 [T]; exactly 0 where it never varies."""
        mean_square = self.square / self.num_rows
        variance = mean_square - (self.total / self.num_rows) ** 2
        return np.where(variance > CONSTANT_SHARE * mean_square, variance, 0.0)

    @property
    def constant_features(self) -> NDArray[np.bool_]:
        """Features kept in every row or in none, bool [N]."""
        return (self.kept == 0) | (self.kept == self.num_rows)

    @property
    def constant_targets(self) -> NDArray[np.bool_]:
        """Targets that never vary, bool [T]."""
        return self.output_variance == 0

    def with_offset(self, offset: NDArray[np.float64]) -> Moments:
        """Return the same sums about another constant."""
        shift = self.offset - offset
        return replace(
            self,
            offset=offset,
            cross=self.cross + self.kept[:, None] * shift,
            total=self.total + self.num_rows * shift,
            square=self.square + 2 * shift * self.total + self.num_rows * shift**2,
        )

    def targets(self, chosen: slice | NDArray[np.int64]) -> Moments:
        """Return the moments of some of the targets."""
        return replace(
            self,
            offset=self.offset[chosen],
            cross=self.cross[:, chosen],
            total=self.total[chosen],
            square=self.square[chosen],
        )

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1)

    def __sub__(self, other: Moments) -> Moments:
        """Leave out rows that are part of the sum (a fold)."""
        if other.num_rows > self.num_rows:
            raise RegressionError(
                f"cannot subtract {other.num_rows} rows from moments of {self.num_rows}"
            )
        return self._combined(other, -1)

    def _combined(self, other: Moments, sign: int) -> Moments:
        if (self.num_features, self.num_targets) != (other.num_features, other.num_targets):
            raise RegressionError(
                f"moments of {self.num_features} features and {self.num_targets} targets cannot be "
                f"joined with moments of {other.num_features} and {other.num_targets}"
            )
        same = other.with_offset(self.offset)
        pairs = None
        if self.pairs is not None and same.pairs is not None:
            pairs = self.pairs + np.int32(sign) * same.pairs
        return Moments(
            num_rows=self.num_rows + sign * same.num_rows,
            num_excluded=self.num_excluded + sign * same.num_excluded,
            kept=self.kept + sign * same.kept,
            pairs=pairs,
            offset=self.offset,
            cross=self.cross + sign * same.cross,
            total=self.total + sign * same.total,
            square=self.square + sign * same.square,
            digests=joined_digests(self.digests, same.digests, sign),
        )


class Accumulator:
    """Collects moments block by block.

    Parameters
    ----------
    num_features, num_targets : int
    device : torch.device or str
        On the CPU pairs are counted with packed bits, elsewhere by int8 products.
    nonfinite : str
        ``"exclude"`` or ``"refuse"``.
    with_pairs : bool
        Whether X'X is counted.
    dtype : torch.dtype
        In which X'(Y - offset) of a large block is formed; small ones are formed, and blocks added
        up, in float64.
    expected_rows : int
        How many will be added, where that is known.

    Raises
    ------
    RegressionError
        For a ``nonfinite`` or ``dtype`` that does not exist.
    """

    def __init__(
        self,
        num_features: int,
        num_targets: int,
        device: torch.device | str = "cpu",
        nonfinite: str = "exclude",
        with_pairs: bool = True,
        *,
        dtype: torch.dtype = torch.float32,
        expected_rows: int = 0,
    ) -> None:
        if nonfinite not in ("exclude", "refuse"):
            raise RegressionError(f"nonfinite must be exclude or refuse, not {nonfinite!r}")
        if dtype not in (torch.float32, torch.float64):
            raise RegressionError(f"moments are formed in float32 or float64, not {dtype}")
        self.device, self._nonfinite = torch.device(device), nonfinite
        self.num_rows = self.num_excluded = 0
        self._with_pairs, on_cpu = with_pairs, self.device.type == "cpu"
        self._bits = PairCounter(num_features, expected_rows) if with_pairs and on_cpu else None
        self._pairs: torch.Tensor | None = None
        self._kept = np.zeros(num_features, np.int64)
        self._digests: list[NDArray[np.uint64]] = []
        self._complement: bool | None = None
        self._offset: NDArray[np.float64] | None = None
        # MPS has no float64: it multiplies, the CPU adds up.
        self._home = torch.device("cpu") if self.device.type == "mps" else self.device
        self._dtype = dtype
        self._where = self.device if dtype == torch.float32 else self._home
        self._cross = torch.zeros(num_features, num_targets, dtype=torch.float64, device=self._home)
        self._sums = torch.zeros(2, num_targets, dtype=torch.float64, device=self._home)

    def add(self, masks: NDArray[np.bool_], outputs: NDArray[Any]) -> None:
        """Add rows: bool [B, N] and real [B, T]."""
        if len(masks) == 0:
            return
        if self._offset is None:
            self._offset = _starting_offset(outputs)
        centred = self._centred(outputs, is_small(masks.shape, outputs.shape[1]))
        sums = column_sums(centred)
        if not torch.isfinite(sums).all():
            keep = torch.isfinite(centred).all(dim=1).cpu().numpy()
            self._exclude(keep, outputs)
            masks, centred = masks[keep], centred[torch.from_numpy(keep).to(self._where)]
            sums = column_sums(centred)
            _refuse_overflow(sums)
        if len(masks) == 0:
            return
        self.num_rows += len(masks)
        self._digests.append(mask_digests(masks))
        self._sums += sums.to(self._home)
        self._add_products(masks, centred)

    def _centred(self, outputs: NDArray[Any], small: bool) -> torch.Tensor:
        offset = np.zeros(1) if self._offset is None else self._offset
        narrow = self._dtype == torch.float32 and not (small and self.device.type == "cpu")
        if narrow and outputs.dtype in (np.float16, np.float32) and outputs.dtype.isnative:
            values = torch.from_numpy(np.ascontiguousarray(outputs)).to(self._where)
            return values.float().sub_(torch.as_tensor(offset).float().to(self._where))
        centred = outputs.astype(np.float64) - offset
        if narrow:
            with np.errstate(over="ignore"):  # beyond float32 counts as infinite
                centred = centred.astype(np.float32)
        return torch.from_numpy(centred).to(self._where)

    def _exclude(self, keep: NDArray[np.bool_], outputs: NDArray[Any]) -> None:
        if self._nonfinite == "refuse":
            bad = int(np.flatnonzero(~keep)[0])
            target = int(np.flatnonzero(~np.isfinite(outputs[bad].astype(np.float64)))[0])
            raise RegressionError(
                f"{int((~keep).sum())} rows have NaN or infinite outputs (the first: row "
                f"{self.num_rows + self.num_excluded + bad}, target {target}); "
                "nonfinite='exclude' leaves such rows out"
            )
        self.num_excluded += int((~keep).sum())

    def _add_products(self, masks: NDArray[np.bool_], centred: torch.Tensor) -> None:
        values = torch.from_numpy(np.ascontiguousarray(masks)).to(self.device)
        if self._bits is None:
            self._kept += values.sum(0).cpu().numpy()
        share = np.count_nonzero(masks) / max(masks.size, 1)
        if self._complement is None:
            # The rarer value gives the smaller sums, hence the smaller rounding.
            self._complement = bool(share > 0.5)
        words = None if self._bits is None else self._bits.add(masks)
        share = 1 - share if self._complement else share
        if self.device.type == "cpu" and pays(share, masks.shape, centred.shape[1]):
            into = self._cross.numpy()
            add_sparse_products(masks, self._complement, centred.numpy(), into, words)
            return
        if self._with_pairs and self._bits is None:
            self._add_pairs(values)
        rare = torch.logical_not(values) if self._complement else values
        columns = rare.to(self._where, centred.dtype).T
        self._cross += torch.mm(columns, centred).to(self._home)

    def _add_pairs(self, values: torch.Tensor) -> None:
        pairs = int8_pairs(values)
        self._pairs = pairs if self._pairs is None else self._pairs.add_(pairs)

    def moments(self) -> Moments:
        """Return the sums of the rows so far; more rows may be added afterwards.

        Raises
        ------
        RegressionError
            If no row is left.
        """
        if self.num_rows == 0 or self._offset is None:
            reason = "there are no rows"
            if self.num_excluded:
                reason = (
                    f"all {self.num_excluded} rows have targets with NaN or infinite outputs: "
                    "leave these targets out (nonfinite)"
                )
            raise RegressionError(f"{NO_ROWS}: {reason}")
        total, square = self._sums.cpu().numpy()
        cross = (self._sums[0] - self._cross if self._complement else self._cross.clone()).cpu()
        pairs = None
        if self._bits is not None:
            pairs = self._bits.total().copy()
            self._kept = pairs.diagonal().astype(np.int64)
        elif self._pairs is not None:
            pairs = self._pairs.cpu().numpy()
        counts = self.num_rows, self.num_excluded, self._kept.copy(), pairs
        digests = np.sort(np.concatenate(self._digests))
        return Moments(*counts, self._offset, cross.numpy(), total, square, digests)


def _refuse_overflow(sums: torch.Tensor) -> None:
    beyond = ~torch.isfinite(sums).all(0).cpu().numpy()
    if beyond.any():
        raise RegressionError(
            f"the squares of the outputs of {int(beyond.sum())} targets (the first: "
            f"{int(np.argmax(beyond))}) overflow; scale their outputs or leave the targets out"
        )


def _starting_offset(outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of the finite values of each target, as float32 holds it; 0 where none is finite."""
    sample = outputs[:256].astype(np.float64)
    finite = np.isfinite(sample)
    sums = np.where(finite, sample, 0).sum(0)
    mean = sums / np.maximum(finite.sum(0), 1)
    with np.errstate(over="ignore"):
        narrow = mean.astype(np.float32).astype(np.float64)
    return np.where(np.isfinite(narrow), narrow, mean)


def _count(source: RowSource, positions: NDArray[np.int64] | None) -> int:
    return len(source.row_ids) if positions is None else len(positions)
