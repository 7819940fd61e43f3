"""Every error that coarlib raises on purpose: one class a failure.

The command line prints the message of a :class:`CoarlibError` as one line and exits with code 2,
so a message is one sentence that says what is wrong, where, and what to do.
"""

import difflib
import operator
from collections.abc import Collection


class CoarlibError(Exception):
    """Base class of all errors that a user can cause and mend."""


class ArgumentError(CoarlibError):
    """A command-line argument or a key of a configuration file is wrong."""


class SpecError(CoarlibError):
    """A store specification (JSON) is malformed or contradicts itself."""


class StoreError(CoarlibError):
    """A store directory is missing, damaged, or not what the caller says it is."""


class MaskError(CoarlibError):
    """Masks do not have the shape or the values that masks have."""


class RowRangeError(StoreError):
    """Row indices lie outside the store."""


class TornRowError(StoreError):
    """The bytes of a committed row do not match its checksum."""


class TaskError(CoarlibError):
    """A task returned rows that the store cannot accept."""


class NonFiniteError(TaskError):
    """A task returned NaN or inf, or a value that overflows the stored dtype."""


class ComponentError(CoarlibError):
    """A component set is empty, ambiguous, or does not fit the model."""


class SetupError(CoarlibError):
    """A set-up's model or data is missing or unusable."""


class BetonError(CoarlibError):
    """A .beton file is truncated, malformed, foreign, or cannot hold what it is asked to hold."""


class RegressionError(CoarlibError):
    """A fit cannot be done as asked (too few rows, contradictory options, not enough memory)."""


class ScoringError(CoarlibError):
    """Attributions and the rows they are scored on do not fit together."""


class HistoryError(CoarlibError):
    """A training history cannot be recorded, read, replayed or explained as asked."""


class ClusterError(CoarlibError):
    """A plan of cluster jobs is wrong, or the queue refuses what it is asked."""


class ReportError(CoarlibError):
    """What a report is asked to show cannot be read or does not fit together."""


def printable(text: object) -> str:
    """Return text for a terminal: control characters, and what no encoding has, are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def first_line(error: BaseException) -> str:
    """Return an exception's kind and the first line of what it says."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said.strip()[:200]}" if said else type(error).__name__


def nearest(word: str, known: Collection[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to ``word``, or ``""``."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def whole_number(value: object, name: str) -> int:
    """Return an argument that counts something; ArgumentError if it is no whole number."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError(f"{name} must be a whole number, not {value!r}") from error
