"""What segsweep says when something is wrong: one sentence that names what was found, what was expected, what to do.

The command line prints the sentence and exits with code 2; Python users catch `SegsweepError`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class SegsweepError(Exception):
    """Base of every error that segsweep raises on purpose. `str(error)` is meant to be read by a person."""


class InputError(SegsweepError):
    """A scan, label map, table or folder that cannot be used as it is. The message names the file or case and the field."""


class StoreError(SegsweepError):
    """A store that is absent, damaged, of another format, or lacks what was asked of it."""


class StorageAwayError(StoreError):
    """An object storage that does not answer now, or answers that it cannot: it may a moment later."""


class RecipeError(SegsweepError):
    """An unknown recipe, or parameters that a recipe does not accept."""


class ResourceError(SegsweepError):
    """A request that this machine or cluster can never meet (memory, workers, disk)."""


class SupersededError(SegsweepError):
    """A training that another process has taken over, since this one could not be reached."""


class ModelError(SegsweepError):
    """A checkpoint or registered model that is absent, damaged, or does not fit the data."""


# What reading a document that somebody else wrote runs into, where it is not what we write.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, InputError)
_MOST_CHARACTERS = 200


@contextmanager
def understood(document: str, *, otherwise: type[SegsweepError], do: str) -> Iterator[None]:
    """While a document is read that anyone may have written: whatever is wrong with it is told in one sentence. `do` is its advice."""
    try:
        yield
    except _UNREADABLE as error:
        words = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
        reason = " ".join(words.split())[:_MOST_CHARACTERS]
        raise otherwise(f"{document}: cannot be used ({reason}); {do}") from None


# More names than this are counted instead of listed.
MOST_NAMES = 12


def unknown(name: str, *, kind: str, known: Iterable[str]) -> str:
    """Sentence for a name that does not exist, with those that do and the nearest first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    listed = ", ".join(names[:MOST_NAMES]) + (f" … {len(names)} in all" if len(names) > MOST_NAMES else "")
    return f"no {name!r} among {kind} (there are: {listed or 'none'}){hint}"
